"""Rows from forwards that somebody else makes: hooks that stay on while a model is in use.

A stream owns its forwards and a tap keeps the rows of one; this hands the rows of each forward,
with their columns, to a function as soon as the forward is over. Padding and key-value caches are
taken from the arguments of the call.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core._kinds import is_dict
from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SiteError, SondeError, near
from sonde.core.inputs import InputBatch, Model
from sonde.core.perturbation import Perturbation
from sonde.tap._apart import Apart
from sonde.tap._aside import is_aside, moved_logits
from sonde.tap._backward import Backward
from sonde.tap._cache import cache_in, cached_length
from sonde.tap._choose import Kind
from sonde.tap._ends import Ends
from sonde.tap._hooks import Session, check_readable
from sonde.tap._names import Names
from sonde.tap._shared import Shared
from sonde.tap.axes import Axes
from sonde.tap.frame import Columns, Frame, all_set
from sonde.tap.outputs import arguments, decodes, find, find_input
from sonde.tap.probe import find_logits
from sonde.tap.reduce import Reduction

WHOLE_TEXTS = ("mean", "cls", "predictions")
MASKS = ("attention_mask", "decoder_attention_mask")


class Onlooker:
    """Hands the rows of each forward of a live model to a function; changes no output.

    Only calls made by the thread that opened it count. A forward that goes on from a filled
    key-value cache brings the rows of its new tokens alone, and none of a sequence that is over
    while ``generate`` goes on with others of its batch. An encoder that ``generate`` runs by itself
    brings its rows with the first step that follows.

    Parameters
    ----------
    model : Model
    schemas : sequence of SiteSchema
        What is read: site, reducer, and the axes and prefix that the probe forward found.
    seen : callable
        ``seen(batch, goes_on)`` after each forward; what it raises leaves the forward.
    objective : str or None, default=None
        Named objective whose gradient at the sites is read too.
    perturb : dict or None, default=None
        Parameters of a ``Perturbation``: the logits after this step of the inputs are read too, by
        two forwards and a backward after each forward.
    logits : bool, default=False
        Bring the model's logits.
    special : collection of int, default=()
        Ids of tokens that are left out of ``mean`` and ``tokens``.
    generation_config : object, optional
        Says the end and padding tokens; by default the model's own does.
    """

    def __init__(
        self,
        model: Model,
        schemas: Sequence[SiteSchema],
        seen: Callable[[Batch, bool], None],
        *,
        objective: str | None = None,
        perturb: dict[str, Any] | None = None,
        logits: bool = False,
        special: Collection[int] = (),
        generation_config: Any = None,
    ) -> None:
        check_readable(model.module)
        names = Names(model.module)
        self.root = names.modules[""]
        self.kinds = tuple(_kind(schema) for schema in schemas)
        self._task, self._seen, self._logits = model.task, seen, logits
        self._special = torch.tensor(sorted(special), dtype=torch.int64) if special else None
        self._backward = None if objective is None else Backward(self.root, objective)
        self._step = None if perturb is None else Perturbation.from_json(perturb)
        self._ends = Ends(self.root, generation_config, special)
        self._slots = _slots(self, names.modules)
        self._apart = Apart(self.root)
        self._shared = Shared()
        self._open = False
        self.session = Session(
            self.root,
            outputs=[
                *((s.module, s.after) for s in self._slots if s.port == "out"),
                *((encoder, self._end_apart) for encoder in self._apart.encoder),
                (self.root, self._end),
            ],
            inputs=[
                (self.root, self._begin),
                *((encoder, self._begin_apart) for encoder in self._apart.encoder),
                *((s.module, s.before) for s in self._slots if s.port == "in"),
            ],
            in_eval=False,
            finish=self._finish,
            owner="Guard",
        )

    def __enter__(self) -> "Onlooker":
        self.session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.__exit__(kind, error, trace)
        self._finish()
        self._apart.clear()

    @property
    def is_open(self) -> bool:
        """Whether a forward of the whole model, or of its encoder alone, is under way."""
        return (self._open or self._apart.is_running) and not is_aside()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_aside():
            return
        named = arguments(self.root, args, kwargs) if args else kwargs
        cache = cache_in(named)
        self._named, self._args, self._kwargs = named, args, kwargs
        self._past = 0 if cache is None else cached_length(cache)
        self._fed = fed = _fed(named)
        self._has_target = decodes(self.root, named)
        length = None if fed is None else self._past + fed.shape[-1]
        self._masks = {name: _mask(named.get(name), length) for name in MASKS}
        self._over = self._ends.after(fed, self._past)
        self._taken: dict[str, list[tuple[Tensor, Columns]]] = {k.key: [] for k in self.kinds}
        self._frame: Frame | None = None
        for slot in self._slots:
            slot.calls = 0
        if self._backward is not None:
            self._backward.begin(named)
        self._open = True
        self._take_apart(self._apart.times(named))

    def _begin_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open or is_aside():
            return
        self._apart.begin(args, kwargs)
        for slot in self._slots:
            slot.calls = 0

    def _end_apart(self, output: Any) -> None:
        if self._apart.is_running and not is_aside():
            self._apart.end(output)

    def _take_apart(self, times: int) -> None:
        """Take the rows of the encoder that ran alone: at the first step, none at later ones."""
        if times and self._backward is not None and self._apart.taken:
            raise InputError(
                f"Guard: no gradient reaches {self._apart.taken[0][0].key} where the encoder runs "
                "alone, as in generate. Leave the detector that needs it out (methods=[...])."
            )
        self._ids_apart = self._apart.repeated_ids(times)
        for kind, leaf, call in self._apart.taken if times else ():
            row = kind.reduction.axes.words.index("row")
            leaf = leaf if times == 1 else leaf.repeat_interleave(times, dim=row)
            if not self._past:
                self.take(kind, leaf, call)
                continue
            self._framed(leaf.shape[row], leaf.device)
            none = torch.zeros(0, dtype=torch.int64)
            self._taken[kind.key] = [(leaf.new_zeros(0, kind.schema.dim), Columns(none, none))]

    def take(self, kind: Kind, leaf: Tensor, call: int) -> None:
        """Keep the rows of one call of a site."""
        if self._apart.is_running:
            self._apart.taken.append((kind, leaf.detach(), call))
            return
        taken = self._taken[kind.key]
        if kind.site.call is None and taken:
            raise SiteError(
                f"Guard: {kind.site.path!r} is called more than once in this forward, once when "
                "the probe was fitted. Fit at @last or @all."
            )
        try:
            frame = self._frame_of(kind, leaf)
            x = leaf.detach() if leaf.requires_grad else leaf
            rows, layout = kind.reduction(x, frame)
        except SondeError as error:
            error.add_note(f"at {kind.key}")
            raise
        columns = frame.columns(layout)
        if kind.site.call == "all" and kind.reduction.reducer.one_row:
            columns = replace(columns, position=columns.position + call)
        if kind.site.call == "last":
            taken.clear()
        taken.append((rows, columns))

    def watched(self, kinds: Sequence[Kind], output: Any) -> Any:
        """Return an output, or one in its place, whose gradient at the sites can be taken."""
        if self._backward is None or self._apart.is_running:
            return output
        return self._backward.watch(kinds, output)

    def watched_input(
        self,
        kinds: Sequence[Kind],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return arguments whose gradient at the sites can be taken, or None to leave them."""
        if self._backward is None or self._apart.is_running or not kinds:
            return None
        for kind in kinds:
            args, kwargs = self._backward.watch_input(kind, module, args, kwargs)
        return args, kwargs

    def _frame_of(self, kind: Kind, leaf: Tensor) -> Frame:
        self._require_whole(kind, leaf)
        return self._framed(leaf.shape[kind.reduction.axes.words.index("row")], leaf.device)

    def _framed(self, n: int, device: torch.device) -> Frame:
        if self._frame is None:
            self._frame = Frame(self._inputs(n), device, self._shared)
            self._frame.is_careful = self._is_padded()
        return self._frame

    def _require_whole(self, kind: Kind, leaf: Tensor) -> None:
        """Refuse a part of a text where a reducer needs all of it."""
        name, got = kind.reduction.reducer.name, ""
        if name not in WHOLE_TEXTS or not kind.reduction.is_over_tokens:
            return
        n_fed = 0 if self._fed is None else self._fed.shape[-1]
        if self._past:
            got = f"a forward that goes on after {self._past} cached tokens"
        elif name == "predictions" and leaf.ndim == 3 and leaf.shape[1] < n_fed:
            got = f"the logits of {leaf.shape[1]} of {n_fed} tokens, as generate makes them"
        if got:
            raise InputError(
                f"Guard: the reducer {name!r} needs the whole text, got {got}. Call the model on "
                "the finished text, or fit with the reducer last or tokens to guard generation."
            )

    def _inputs(self, n: int) -> InputBatch:
        index = torch.arange(n)
        masks, own = dict(self._masks), MASKS[self._has_target]
        mask, first = masks[own], None
        if self._past:
            first = torch.full((n,), self._past)
            if mask is not None and mask.shape[1] > self._past:
                first = mask[:, : self._past].sum(dim=1).cpu()
            masks[own] = None if mask is None else mask[:, self._past :]
        keys = [b""] * n  # rows of a call are told apart by their number, not by their content
        return InputBatch(
            args=self._args,
            kwargs=self._kwargs,
            ids=[str(i) for i in range(n)],
            keys=keys,
            order=index,
            occurrence=index,
            group_keys=keys,
            label=torch.full((n,), -1),
            mask=masks["attention_mask"],
            decoder_mask=masks["decoder_attention_mask"],
            special=self._specials(),
            first=first,
        )

    def _is_padded(self) -> bool:
        masks = self._masks.values()
        return self._special is not None or any(m is not None and not all_set(m) for m in masks)

    def _specials(self) -> Tensor | None:
        ids = self._named.get("input_ids", self._ids_apart)
        if self._special is None or not isinstance(ids, Tensor):
            return None
        found = torch.isin(ids.cpu(), self._special)
        mask = self._masks["attention_mask"]
        past = 0 if self._has_target else self._past
        real = None if mask is None else mask[:, past:].cpu()
        return found if real is None or real.shape != found.shape else found & real

    def _end(self, output: Any) -> Any:
        if is_aside():
            return None
        self._open = False
        missing = [key for key, taken in self._taken.items() if not taken]
        if missing or self._frame is None:
            given = self._named.get("encoder_outputs") is not None
            advice = (
                "Open the guard before the encoder runs"
                if given
                else ("Fit at modules that run for every input")
            )
            raise SiteError(
                f"Guard: {', '.join(missing)} did not run in this forward, though it did when the "
                f"probe was fitted. {advice}."
            )
        logits = self._found_logits(output, self._frame)
        grad: dict[str, Tensor] = {}
        if self._backward is not None:
            batch = self._frame.batch
            grad = self._backward.gradients(self.kinds, output, logits, batch, self._frame)
            output, changed = self._backward.released(output), True
        else:
            changed = False
        moved: dict[str, Tensor] = {}
        if self._step is not None:
            found = moved_logits(self.root, self._args, self._kwargs, self._step)
            moved["perturbed_logits"] = found
        batch = self._batch(self._frame, None if logits is None else logits.detach(), grad, moved)
        with torch.no_grad():
            self._seen(batch, self._past > 0)
        return output if changed else None

    def _finish(self) -> None:
        """Leave nothing of a forward behind, also of one that raised."""
        if is_aside():
            return
        self._open, self._taken, self._frame = False, {}, None
        self._named, self._args, self._kwargs, self._masks = {}, (), {}, {}
        self._over = self._fed = self._ids_apart = None
        if self._backward is not None:
            self._backward.end()

    def _found_logits(self, output: Any, frame: Frame) -> Tensor | None:
        logits = find_logits(output) if self._logits or self._backward is not None else None
        if logits is None or logits.ndim == 2:
            return logits if logits is None or logits.shape[0] == frame.n else None
        if self._task != "causal" or logits.ndim != 3:
            return None
        mask = frame.masks["pos"]
        if mask is None or mask.shape[1] == logits.shape[1]:
            last = frame.one("pos", logits.shape[1], "last")
            return logits[tuple(frame.beside(index, logits) for index in last)]
        if not bool(mask[:, -1].all()):
            raise InputError(
                "Guard: expected logits for every token, or padding on the left, got logits of "
                f"{logits.shape[1]} tokens of {mask.shape[1]} with padding on the right."
            )
        return logits[:, -1]

    def _batch(
        self,
        frame: Frame,
        logits: Tensor | None,
        grad: dict[str, Tensor],
        extra: dict[str, Tensor],
    ) -> Batch:
        rows: dict[str, Tensor] = {}
        columns: dict[str, Columns] = {}
        for key, taken in self._taken.items():
            rows[key], columns[key] = taken[0] if len(taken) == 1 else _joined(taken)
            if self._over is not None:
                kept = torch.nonzero(~self._over[columns[key].example]).flatten()
                columns[key] = _at(kept, columns[key])
                for part in (rows, grad):
                    if key in part:
                        part[key] = part[key][kept.to(part[key].device)]
        own = frame.batch
        return Batch(
            rows=rows,
            ids=own.ids,
            keys=own.keys,
            order=own.order,
            occurrence=own.occurrence,
            example={key: c.example for key, c in columns.items()},
            position={key: c.position for key, c in columns.items()},
            group_keys=own.group_keys,
            label=own.label,
            logits=logits,
            grad=grad,
            grid={key: c.grid for key, c in columns.items() if c.grid is not None},
            special={key: c.special for key, c in columns.items() if c.special is not None},
            extra=extra,
        )


def _mask(found: Any, length: int | None) -> Tensor | None:
    """Return which tokens are real; of a mask for each query, what the last one may look at.

    ``generate`` makes such masks, true or 0 where a query may look, for caches of a fixed size.
    """
    found = found.get("full_attention") if is_dict(found) else found
    if isinstance(found, Tensor) and found.ndim == 4:
        last = found[:, 0, -1, :length]
        return last if last.dtype == torch.bool else last == 0
    return found.bool() if isinstance(found, Tensor) and found.ndim == 2 else None


def _fed(named: dict[str, Any]) -> Tensor | None:
    found = (named.get(name) for name in ("decoder_input_ids", "input_ids"))
    return next((ids for ids in found if isinstance(ids, Tensor)), None)


class _Slot:
    """One module and port: counts its calls and hands tensors to the onlooker."""

    def __init__(
        self, onlooker: Onlooker, port: str, kinds: Sequence[Kind], module: nn.Module
    ) -> None:
        self.onlooker, self.port, self.kinds, self.module = onlooker, port, tuple(kinds), module
        self.calls = 0

    def after(self, output: Any) -> Any:
        """Take from an output; return one in its place only where a gradient is wanted."""
        if not self.onlooker.is_open:
            return None
        mine = self._mine()
        for kind in mine:
            leaf = find(output, kind.site.key)
            if leaf is None:
                raise SiteError(f"Guard: {str(kind.site)!r} returned no such tensor this time.")
            self.onlooker.take(kind, leaf, self.calls)
        self.calls += 1
        changed = self.onlooker.watched(mine, output)
        return None if changed is output else changed

    def before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take from the inputs; return some in their place only where a gradient is wanted."""
        if not self.onlooker.is_open:
            return None
        mine = self._mine()
        for kind in mine:
            leaf = find_input(self.module, args, kwargs, kind.site.key)[1]
            self.onlooker.take(kind, leaf, self.calls)
        self.calls += 1
        return self.onlooker.watched_input(mine, self.module, args, kwargs)

    def _mine(self) -> list[Kind]:
        return [
            k for k in self.kinds if not isinstance(k.site.call, int) or k.site.call == self.calls
        ]


def _slots(onlooker: Onlooker, modules: dict[str, nn.Module]) -> list[_Slot]:
    grouped: dict[tuple[str, str], list[Kind]] = {}
    for kind in onlooker.kinds:
        if kind.site.path not in modules:
            advice = near(kind.site.path, modules)
            raise SiteError(f"Site: expected a module {kind.site.path!r}, got none.{advice}")
        grouped.setdefault((kind.site.path, kind.site.port), []).append(kind)
    return [_Slot(onlooker, port, kinds, modules[path]) for (path, port), kinds in grouped.items()]


def _kind(schema: SiteSchema) -> Kind:
    if schema.site.port not in ("out", "in"):
        raise InputError(
            f"Guard: expected sites with port out or in, got {str(schema.site)!r}. Fit at those."
        )
    axes = Axes(tuple(schema.axes.split()), schema.prefix)
    return Kind(schema.key, schema.site, Reduction(schema.reducer, axes), schema)


def _joined(taken: Sequence[tuple[Tensor, Columns]]) -> tuple[Tensor, Columns]:
    columns = Columns(
        torch.cat([c.example for _, c in taken]), torch.cat([c.position for _, c in taken])
    )
    return torch.cat([rows for rows, _ in taken]), columns


def _at(index: Tensor, columns: Columns) -> Columns:
    grid, special = columns.grid, columns.special
    return Columns(
        columns.example[index],
        columns.position[index],
        None if grid is None else grid[index],
        None if special is None else special[index],
    )
