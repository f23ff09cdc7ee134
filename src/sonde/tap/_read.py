"""One forward of a live model, and the rows that hooks took from it."""

import contextlib
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError, SondeError
from sonde.core.inputs import InputBatch
from sonde.tap._choose import Kind
from sonde.tap._hooks import Session
from sonde.tap._rack import Rack
from sonde.tap._shared import Shared
from sonde.tap._slab import Slab
from sonde.tap._waiting import Waiting
from sonde.tap.frame import POOLED, Columns, Frame
from sonde.tap.objectives import Objective, value
from sonde.tap.outputs import find, find_input, replaced, with_input
from sonde.tap.probe import Probe, find_logits
from sonde.tap.sites import last_call

Taken = dict[int, tuple[Tensor, Hashable]]


@dataclass
class Reading:
    """What one forward brought."""

    rows: dict[str, Tensor]
    columns: dict[str, Columns]
    grad: dict[str, Tensor]
    logits: Tensor | None


def reading_of(taken: Mapping[str, tuple[Tensor, Hashable]], frame: Frame) -> Reading:
    """Return rows that are there already, with their columns."""
    rows = {key: x for key, (x, _) in taken.items()}
    columns = {key: frame.columns(layout) for key, (_, layout) in taken.items()}
    return Reading(rows, columns, {}, None)


class Reader:
    """Reads fixed kinds of rows from one live model, forward by forward."""

    def __init__(
        self,
        root: nn.Module,
        kinds: Sequence[Kind],
        probe: Probe,
        *,
        objective: Objective | None = None,
        causal: bool = False,
        logits: bool = True,
        has_logits: bool = True,
    ) -> None:
        self.kinds, self.probe, self.objective = tuple(kinds), probe, objective
        self.causal, self.wants_logits, self.has_logits = causal, logits, has_logits
        self.modules = list(root.modules())
        self.taken: dict[str, Taken] = {}
        self.gradients: dict[str, Taken] = {}
        self.slots = self._make_slots()
        self.shared, self.rack = Shared(), Rack(Slab())
        modules = probe.names.modules
        self.session = Session(
            root,
            outputs=[(modules[s.path], s.after) for s in self.slots if s.port == "out"],
            inputs=[(modules[s.path], s.before) for s in self.slots if s.port == "in"],
            with_grad=objective is not None,
            modules=self.modules,
            parameters=list(root.parameters()),
        )
        self.may_stop = not logits and objective is None and self._is_safe()

    def _make_slots(self) -> list["_Slot"]:
        grouped: dict[tuple[str, str], list[Kind]] = {}
        for kind in self.kinds:
            port = "in" if kind.site.port == "in" else "out"
            grouped.setdefault((kind.site.path, port), []).append(kind)
        return [_Slot(self, path, port, kinds) for (path, port), kinds in grouped.items()]

    def _is_safe(self) -> bool:
        open_ended = any(kind.site.call in ("last", "all") for kind in self.kinds)
        foreign = any(m._forward_hooks_always_called for m in self.modules)
        return not (open_ended or foreign or any(_offloads_block(m) for m in self.modules))

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: InputBatch, frame: Frame
    ) -> Reading:
        """Run the model once and return what was taken; the session is open."""
        self.frame = frame
        self.taken = {kind.key: {} for kind in self.kinds}
        self.gradients = {kind.key: {} for kind in self.kinds}
        self.waiting: Waiting[tuple[Kind, int]] = Waiting()
        self.rack.begin()
        self.stops = self.may_stop and kwargs.get("past_key_values") is None
        for slot in self.slots:
            slot.calls = 0
        logits = self._forward(args, kwargs, batch)
        if frame.drops_tokens and not frame.is_careful and self._may_be_poisoned():
            frame.is_careful = True
            return self.read(args, kwargs, batch, frame)
        reading = self._reading(logits)
        self.taken, self.gradients = {}, {}
        return reading

    def _forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: InputBatch
    ) -> Tensor | None:
        output = self.session.run(args, kwargs)
        self._settle()
        logits = self._logits(output, self.frame)
        if self.objective is not None:
            self._backward(output, logits, batch)
        return None if logits is None else logits.detach()

    def _settle(self) -> None:
        for reduction, members, outputs in self.waiting.groups():
            with at_site(members[0][0].key):
                rows, layout = reduction.stacked(outputs, self.frame)
            for (kind, call), mine in zip(members, rows.unbind(), strict=True):
                self.taken[kind.key][call] = mine, layout

    def _may_be_poisoned(self) -> bool:
        """Return whether a mean over tokens is not finite, perhaps by a token at weight 0."""
        means = [
            k
            for k in self.kinds
            if k.reduction.is_over_tokens and k.reduction.reducer.name == "mean"
        ]
        taken = [rows for kind in means for rows, _ in self.taken[kind.key].values()]
        sums = [rows.sum(dtype=torch.float32).to(self.frame.device) for rows in taken]
        return bool(sums) and not math.isfinite(float(torch.stack(sums).sum()))

    def _backward(self, output: Any, logits: Tensor | None, batch: InputBatch) -> None:
        with torch.enable_grad():
            scalar = value(self.objective, output, logits, batch)  # type: ignore[arg-type]
            if scalar.requires_grad:
                scalar.backward()

    def _logits(self, output: Any, frame: Frame) -> Tensor | None:
        if output is None or not self.has_logits:
            return None
        if not (self.wants_logits or self.objective is not None):
            return None
        logits = find_logits(output)
        if logits is None:
            return None
        if self.causal and logits.ndim == 3:
            with torch.set_grad_enabled(self.objective is not None):
                one = frame.one("pos", logits.shape[1], "last")
                return logits[tuple(frame.beside(index, logits) for index in one)]
        return logits if logits.ndim == 2 and logits.shape[0] == frame.n else None

    def watch_gradient(self, kinds: Sequence[Kind], leaf: Tensor, call: int) -> Tensor:
        """Return the tensor, or one in its place, whose gradient will be taken."""
        watched = leaf if leaf.requires_grad else leaf.detach().requires_grad_(True).clone()
        if watched.requires_grad:
            watched.register_hook(lambda grad: self._take_gradient(kinds, grad, call))
        return watched

    def _take_gradient(self, kinds: Sequence[Kind], grad: Tensor, call: int) -> None:
        with torch.no_grad():
            for kind in kinds:
                self.gradients[kind.key][call] = kind.reduction(grad.detach(), self.frame)

    def _reading(self, logits: Tensor | None) -> Reading:
        reading = Reading({}, {}, {}, logits if self.wants_logits else None)
        for kind in self.kinds:
            is_grad = kind.site.port == "grad"
            source = self.gradients if is_grad else self.taken
            rows, columns = self._joined(kind, source[kind.key])
            reading.rows[kind.key], reading.columns[kind.key] = rows, columns
            if self.objective is not None and not is_grad:
                reading.grad[kind.key] = self._joined(kind, self.gradients[kind.key])[0]
        return reading

    def _joined(self, kind: Kind, taken: Taken) -> tuple[Tensor, Columns]:
        """Return the rows of a kind; ``@all`` gives pooled rows their call as position."""
        if not taken:
            raise self._missing(kind)
        if kind.site.call is None and len(taken) > 1:
            raise SiteError(
                f"Site: {str(kind.site)!r} ran {len(taken)} times in this forward, once in the "
                "probe forward. Write @last or @all."
            )
        if kind.site.call != "all":
            rows, layout = taken[max(taken)]
            return rows, self.frame.columns(layout)
        parts = [taken[call] for call in sorted(taken)]
        each = [self.frame.columns(layout) for _, layout in parts]
        shift = int(kind.reduction.reducer.one_row)
        position = [c.position + shift * call for c, call in zip(each, sorted(taken), strict=True)]
        columns = Columns(torch.cat([c.example for c in each]), torch.cat(position))
        return torch.cat([rows for rows, _ in parts]), columns

    def _missing(self, kind: Kind) -> SiteError:
        if self.objective is not None and self.taken[kind.key]:
            return SiteError(
                f"Site: no gradient reached {str(kind.site)!r}: the objective does not depend on "
                "it. Choose another objective, or leave the site out."
            )
        return SiteError(
            f"Site: {str(kind.site)!r} did not run in this forward, though it did in the probe "
            f"forward (examples {', '.join(self.frame.batch.ids[:3])}, ...). "
            "Read a module that runs for every input."
        )


class _Slot:
    """One module and port: counts its calls and hands tensors to the reader."""

    def __init__(self, reader: Reader, path: str, port: str, kinds: Sequence[Kind]) -> None:
        self.reader, self.path, self.port, self.kinds = reader, path, port, tuple(kinds)
        self.module = reader.probe.names.modules[path]
        self.calls, self.stop_at = 0, -1
        last = max(reader.kinds, key=lambda kind: kind.site.order)
        if any(last is kind for kind in self.kinds):
            self.stop_at = last_call(last.site, reader.probe.calls(path))
        self.differentiates = reader.objective is not None
        self.plan = [(k, k.site.key, k.site.call if _is_number(k) else None) for k in self.kinds]

    def after(self, output: Any) -> Any:
        """Take from an output; return one with gradient-requiring tensors if those are needed."""
        call, leaf, at = self.calls, None, None
        taken: list[tuple[Kind, Tensor]] = []
        copies: dict[int, Tensor] = {}
        for kind, key, wanted in self.plan:
            if wanted is None or wanted == call:
                if leaf is None or key != at:
                    leaf, at = find(output, key), key
                if leaf is None:
                    raise SiteError(f"Site: {str(kind.site)!r} returned no such tensor this time.")
                self._take(kind, leaf, call, copies)
                if self.differentiates:
                    taken.append((kind, leaf))
        changed = self._watched(output, taken) if self.differentiates else output
        self._count()
        return None if changed is output else changed

    def _watched(self, output: Any, taken: Sequence[tuple[Kind, Tensor]]) -> Any:
        by_leaf: dict[int, tuple[Tensor, list[Kind]]] = {}
        for kind, leaf in taken:
            by_leaf.setdefault(id(leaf), (leaf, []))[1].append(kind)
        for leaf, kinds in by_leaf.values():
            watched = self.reader.watch_gradient(kinds, leaf, self.calls)
            output = replaced(output, leaf, watched) if watched is not leaf else output
        return output

    def before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take from the inputs; return some in their place if gradients are needed.

        What else reads the same tensor takes no part in the gradient.
        """
        copies: dict[int, Tensor] = {}
        mine = [(k, key) for k, key, wanted in self.plan if wanted is None or wanted == self.calls]
        for kind, key in mine:
            leaf = find_input(self.module, args, kwargs, key)[1]
            self._take(kind, leaf, self.calls, copies)
        for kind, key in mine if self.differentiates else ():
            leaf = find_input(self.module, args, kwargs, key)[1]
            own = leaf.clone() if leaf.requires_grad else leaf
            args, kwargs = with_input(
                args, kwargs, leaf, self.reader.watch_gradient([kind], own, self.calls)
            )
        self._count()
        return (args, kwargs) if self.differentiates and mine else None

    def _take(self, kind: Kind, leaf: Tensor, call: int, copies: dict[int, Tensor]) -> None:
        reader, reduction = self.reader, kind.reduction
        x = leaf.detach() if leaf.requires_grad else leaf
        try:
            if reduction.is_token_mean and not x.is_nested:
                rows = reduction.token_mean(x, reader.frame, reader.rack)
                reader.taken[kind.key][call] = rows, POOLED
            elif Waiting.takes(reduction, x):
                copy = copies.pop(id(leaf), None)
                copy = x.clone() if copy is None else copy
                found = reduction.all_tokens(copy, reader.frame)
                if found is not None:
                    reader.taken[kind.key][call] = found
                else:
                    copies[id(leaf)] = copy
                    reader.waiting.add((kind, call), reduction, copy)
            else:
                rows, layout = reduction(x, reader.frame)
                reader.taken[kind.key][call] = reader.rack.slab.keep(rows), layout
        except SondeError as error:
            error.add_note(f"at {kind.key}")
            raise

    def _count(self) -> None:
        call, self.calls = self.calls, self.calls + 1
        if call == self.stop_at and self.reader.stops:
            self.reader.session.stop()


@contextlib.contextmanager
def at_site(key: str) -> Iterator[None]:
    """Name the site in an error that is raised inside."""
    try:
        yield
    except SondeError as error:
        error.add_note(f"at {key}")
        raise


def _is_number(kind: Kind) -> bool:
    return isinstance(kind.site.call, int)


def _offloads_block(module: nn.Module) -> bool:
    """Return whether a module with children moves their weights away after its forward."""
    hook = module.__dict__.get("_hf_hook")
    if hook is None or not module._modules:
        return False
    parts = hook.__dict__.get("hooks", (hook,))
    return any(part.__dict__.get("offload") for part in parts)
