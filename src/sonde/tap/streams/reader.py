"""Read a live model pass by pass: register hooks, run it, and collect its rows."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch
from sonde.core.site import ATTENTION_PORTS
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hooks.cache import cache_in
from sonde.tap.hooks.outputs import find, find_input, replaced, with_input
from sonde.tap.hooks.session import Session
from sonde.tap.hooks.sharding import is_fully_sharded
from sonde.tap.model.forward_errors import advising
from sonde.tap.model.objectives import Objective, value
from sonde.tap.model.probe import Probe, find_logits
from sonde.tap.model.sites import last_call
from sonde.tap.rows.frame import Frame, RowPlaces
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.row_memory import RowMemory
from sonde.tap.rows.shared import SharedSelections
from sonde.tap.streams.taken import Calls, Taken, TakenTensor, make_rows


class SiteHooks:
    """Hooks of a module at a port.

    Parameters
    ----------
    path, module, port : str, nn.Module, str
    kinds : sequence of Kind
        What is read there.
    stop_at : int
        The call after which nothing is left to read; -1 where another slot is the last.
    differentiates : bool
        Whether gradients are read too.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        port: str,
        kinds: Sequence[Kind],
        stop_at: int,
        differentiates: bool,
    ) -> None:
        self.path, self.module, self.port, self.kinds = path, module, port, tuple(kinds)
        self.stop_at, self.differentiates = stop_at, differentiates
        self.is_inside = port in ATTENTION_PORTS
        self._leaves: dict[int, tuple[TakenTensor, ...]] = {}
        self._taken: Taken | None = None

    def begin(self, taken: Taken) -> None:
        """Reset the call counts, and pass tensors to ``taken`` from here on."""
        self._taken, self._calls = taken, 0

    def end(self) -> None:
        """Release the collected tensors, and ignore later calls of the module."""
        self._taken = None

    def _called(self) -> tuple[TakenTensor, ...]:
        """Return the tensors to read from this call."""
        if self._calls not in self._leaves:
            by_key: dict[str | None, list[Kind]] = {}
            for kind in self.kinds:
                if not isinstance(kind.site.call, int) or kind.site.call == self._calls:
                    by_key.setdefault(kind.site.key, []).append(kind)
            self._leaves[self._calls] = tuple(TakenTensor(*item) for item in by_key.items())
        return self._leaves[self._calls]

    def after(self, output: Any) -> Any:
        """Collect from an output; return a version with gradients if those are needed."""
        taken = self._taken
        if taken is None:
            return None
        leaves_here: list[tuple[TakenTensor, Tensor]] = []
        for leaf in self._called():
            x = find(output, leaf.key)
            if x is None:
                site = str(leaf.kinds[0].site)
                raise SiteError(f"Site: {site!r} returned no tensor in this forward pass.")
            taken.take(leaf, x, self._calls)
            leaves_here.append((leaf, x))
        changed = self._watched(taken, output, leaves_here) if self.differentiates else output
        self._count(taken)
        return None if changed is output else changed

    def _watched(
        self, taken: Taken, output: Any, found: Sequence[tuple[TakenTensor, Tensor]]
    ) -> Any:
        by_tensor: dict[int, tuple[Tensor, list[Kind]]] = {}
        for leaf, x in found:
            by_tensor.setdefault(id(x), (x, []))[1].extend(leaf.kinds)
        for x, kinds in by_tensor.values():
            watched = taken.watch(kinds, x, self._calls)
            output = replaced(output, x, watched) if watched is not x else output
        return output

    def before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Collect from the inputs; return replacements if gradients are needed.

        Other modules that read the same tensor take no part in the gradient.
        """
        taken = self._taken
        if taken is None:
            return None
        called = self._called()
        for leaf in called:
            x = find_input(self.module, args, kwargs, leaf.key)[1]
            taken.take(leaf, x, self._calls)
        for leaf in called if self.differentiates else ():
            x = find_input(self.module, args, kwargs, leaf.key)[1]
            own = x.clone() if x.requires_grad else x
            watched = taken.watch(leaf.kinds, own, self._calls)
            args, kwargs = with_input(args, kwargs, x, watched)
        self._count(taken)
        return (args, kwargs) if self.differentiates and called else None

    def _count(self, taken: Taken) -> None:
        call, self._calls = self._calls, self._calls + 1
        if call == self.stop_at and taken.stop is not None:
            taken.stop()


HELD_BYTES = 2**17
"""Copies of one forward up to this size wait until several have run."""


@dataclass
class ForwardReading:
    """Rows read in one forward pass."""

    rows: dict[str, Tensor]
    columns: dict[str, RowPlaces]
    grad: dict[str, Tensor]
    logits: Tensor | None


def reading_of(taken: Mapping[str, tuple[Tensor, Hashable]], frame: Frame) -> ForwardReading:
    """Return the reading of existing rows, with their columns."""
    rows = {key: x for key, (x, _) in taken.items()}
    columns = {key: frame.columns(layout) for key, (_, layout) in taken.items()}
    return ForwardReading(rows, columns, {}, None)


class Reader:
    """Reads fixed kinds of rows from one live model, pass by pass."""

    def __init__(
        self,
        root: nn.Module,
        kinds: Sequence[Kind],
        probe: Probe,
        *,
        objective: Objective | None = None,
        causal: bool = False,
        logits: bool = True,
        logits_key: str | None = None,
    ) -> None:
        self.kinds, self.probe, self.objective = tuple(kinds), probe, objective
        self.causal, self.wants_logits, self.logits_key = causal, logits, logits_key
        self.modules = list(root.modules())
        self.slots = self._make_slots()
        self.shared, self.writer = SharedSelections(), MeanWriter(RowMemory())
        modules = probe.names.modules
        self.session = Session(
            root,
            outputs=[(modules[s.path], s.after) for s in self.slots if s.port == "out"],
            inputs=[(modules[s.path], s.before) for s in self.slots if s.port == "in"],
            inside=watch_attention(
                [(modules[s.path], s.port, s.after) for s in self.slots if s.is_inside]
            ),
            with_grad=objective is not None,
            modules=self.modules,
            parameters=list(root.parameters()),
            restores=False,  # whether rows depend on what an earlier forward left is asked here
        )
        self.may_stop = not logits and objective is None and self._is_safe()

    def _make_slots(self) -> list[SiteHooks]:
        grouped: dict[tuple[str, str], list[Kind]] = {}
        for kind in self.kinds:
            port = "out" if kind.site.port == "grad" else kind.site.port
            grouped.setdefault((kind.site.path, port), []).append(kind)
        last = max(self.kinds, key=lambda kind: kind.site.order)
        slots: list[SiteHooks] = []
        for (path, port), kinds in grouped.items():
            is_last = any(kind is last for kind in kinds)
            stop_at = last_call(last.site, self.probe.calls(path)) if is_last else -1
            module = self.probe.names.modules[path]
            slots.append(SiteHooks(path, module, port, kinds, stop_at, self.objective is not None))
        return slots

    def _is_safe(self) -> bool:
        open_ended = any(kind.site.call in ("last", "all") for kind in self.kinds)
        foreign = any(m._forward_hooks_always_called for m in self.modules)
        holds = any(_offloads_block(m) for m in self.modules)  # or shards what a block took
        return not (open_ended or foreign or holds or is_fully_sharded(self.session.root))

    def frame(self, batch: InputBatch) -> Frame:
        """Return the examples of a batch in the form that reductions need."""
        return Frame(batch, self.probe.place.device, self.shared)

    def read(self, batch: InputBatch) -> ForwardReading | Taken:
        """Run the model once while the session is open.

        What is small becomes rows after several forwards, in ``readings``: the same few calls, one
        after the other, find warm caches, but scattered between modules they do not.
        """
        taken = self._run(batch, self.frame(batch))
        return taken if 0 < taken.held_bytes <= HELD_BYTES else self._read(taken)

    def readings(self, several: Sequence[ForwardReading | Taken]) -> list[ForwardReading]:
        """Return the rows of several forward passes while the session is open."""
        waiting = [one for one in several if isinstance(one, Taken)]
        if waiting:
            with advising(waiting[0].batch):
                make_rows(waiting)
        return [one if isinstance(one, ForwardReading) else self._reading(one) for one in several]

    def _run(self, batch: InputBatch, frame: Frame) -> Taken:
        args, kwargs = self.probe.place.call(batch.args, batch.kwargs)
        self.writer.begin()
        stops = self.may_stop and cache_in(kwargs) is None
        stop = self.session.stop if stops else None
        taken = Taken(self.kinds, batch, frame, self.writer, stop)
        for slot in self.slots:
            slot.begin(taken)
        try:
            with advising(batch):
                output = self.session.run(args, kwargs)
                logits = self._logits(output, frame)
                if self.objective is not None:
                    self._backward(output, logits, batch)
        finally:
            for slot in self.slots:
                slot.end()
        taken.logits = None if logits is None else logits.detach()
        return taken

    def _read(self, taken: Taken) -> ForwardReading:
        """Return the rows of a forward pass without delay."""
        with advising(taken.batch):
            make_rows([taken])
        return self._reading(taken)

    def _backward(self, output: Any, logits: Tensor | None, batch: InputBatch) -> None:
        with torch.enable_grad():
            scalar = value(self.objective, output, logits, batch)  # type: ignore[arg-type]
            if scalar.requires_grad:
                scalar.backward()

    def _logits(self, output: Any, frame: Frame) -> Tensor | None:
        if output is None or self.logits_key is None:
            return None
        if not (self.wants_logits or self.objective is not None):
            return None
        logits = find_logits(output, self.logits_key)
        if logits is None:
            return None
        with torch.set_grad_enabled(self.objective is not None):
            if self.causal and logits.ndim == 3:
                one = frame.one("pos", logits.shape[1], "last")
                return logits[tuple(frame.on_device(index, logits) for index in one)]
            is_ours = logits.ndim == 2 and logits.shape[0] == frame.n
            return self.writer.memory.copy(logits) if is_ours else None

    def _reading(self, taken: Taken) -> ForwardReading:
        reading = ForwardReading({}, {}, {}, taken.logits if self.wants_logits else None)
        for kind in self.kinds:
            is_grad = kind.site.port == "grad"
            source = taken.gradients if is_grad else taken.rows
            rows, columns = self._joined(kind, source[kind.key], taken)
            reading.rows[kind.key], reading.columns[kind.key] = rows, columns
            if self.objective is not None and not is_grad:
                reading.grad[kind.key] = self._joined(kind, taken.gradients[kind.key], taken)[0]
        return reading

    def _joined(self, kind: Kind, calls: Calls, taken: Taken) -> tuple[Tensor, RowPlaces]:
        """Return the rows of a kind; with ``@all`` a pooled row's position is its call index."""
        if not calls:
            raise self._missing(kind, taken)
        if kind.site.call is None and len(calls) > 1:
            raise SiteError(
                f"Site: {str(kind.site)!r} ran {len(calls)} times in this forward pass, but "
                "once in the probe forward pass. Write @last or @all."
            )
        if kind.site.call != "all":
            rows, layout = calls[max(calls)]
            return rows, taken.frame.columns(layout)
        parts = [calls[call] for call in sorted(calls)]
        widths = {rows.shape[1] for rows, _ in parts}
        if len(widths) > 1:
            raise SiteError(
                f"Site: the calls of {str(kind.site)!r} give rows of {sorted(widths)} features, "
                f"which cannot be joined (examples {', '.join(taken.batch.ids[:3])}, ...). Read "
                "them separately: @0, @1, ..."
            )
        each = [taken.frame.columns(layout) for _, layout in parts]
        shift = int(kind.reduction.reducer.one_row)
        position = [c.position + shift * call for c, call in zip(each, sorted(calls), strict=True)]
        columns = RowPlaces(torch.cat([c.example for c in each]), torch.cat(position))
        return torch.cat([rows for rows, _ in parts]), columns

    def _missing(self, kind: Kind, taken: Taken) -> SiteError:
        if self.objective is not None and taken.rows[kind.key]:
            return SiteError(
                f"Site: no gradient reached {str(kind.site)!r}: the objective does not depend on "
                "it, or the model recomputes it (checkpointing). Choose another objective, switch "
                "checkpointing off, or leave the site out."
            )
        return SiteError(
            f"Site: {str(kind.site)!r} did not run in this forward pass, but ran in the probe "
            f"forward pass (examples {', '.join(taken.batch.ids[:3])}, ...). Read a module "
            "that runs for every input."
        )


def _offloads_block(module: nn.Module) -> bool:
    """Return whether a module with children offloads their weights after its forward pass."""
    hook = module.__dict__.get("_hf_hook")
    if hook is None or not module._modules:
        return False
    parts = hook.__dict__.get("hooks", (hook,))
    return any(part.__dict__.get("offload") for part in parts)
