"""Rows from forwards that somebody else makes: hooks that stay on while a model is in use.

A stream owns its forwards and a tap keeps the rows of one; this hands the rows of each forward,
with their columns, to a function as soon as the forward is over. Padding and key-value caches are
taken from the arguments of the call.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SiteError, SondeError
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.tap._apart import Apart
from sonde.tap._aside import is_aside, moved_logits
from sonde.tap._backward import Backward
from sonde.tap._call import Call
from sonde.tap._choose import Kind
from sonde.tap._ends import Ends
from sonde.tap._foretold import Foretold
from sonde.tap._hooks import Session, check_readable
from sonde.tap._names import Names
from sonde.tap._shared import Shared
from sonde.tap._slots import Slot, slots_of
from sonde.tap._window import window
from sonde.tap.axes import Axes
from sonde.tap.frame import Columns, Frame
from sonde.tap.outputs import find, find_input
from sonde.tap.probe import find_logits
from sonde.tap.reduce import Reduction

WHOLE_TEXTS = ("mean", "cls")


class Onlooker:
    """Hands the rows of each forward of a live model to a function; changes no output.

    Only calls made by the thread that opened it count. A forward that goes on from a filled
    key-value cache brings the rows of its new tokens alone, and none of a sequence that is over
    while ``generate`` goes on with others of its batch. An encoder that ``generate`` runs by itself
    brings its rows with the first step that follows. Where the model makes the logits of its last
    tokens alone, as for the prompt of ``generate``, the others have no rows at that site, and
    ``predictions`` of a token need the logits of the one before it.

    Parameters
    ----------
    model : Model
    schemas : sequence of SiteSchema
        What is read: site, reducer, and the axes and prefix that the probe forward found.
    seen : callable
        ``seen(batch, goes_on, cut)`` after each forward; what it raises leaves the forward.
        ``cut`` are the keys of sites that brought rows of a part of their text.
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
        seen: Callable[[Batch, bool, Collection[str]], None],
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
        self._apart = Apart(self.root)
        self._foretold = Foretold()
        self._shared = Shared()
        self._open = False
        self._call = self._no_call = Call(self.root, (), {})
        self._slots = slots_of(self.kinds, names.modules)
        self.session = Session(
            self.root,
            outputs=[
                *((s.module, partial(self._after, s)) for s in self._slots if s.port == "out"),
                *((encoder, self._end_apart) for encoder in self._apart.encoder),
                (self.root, self._end),
            ],
            inputs=[
                (self.root, self._begin),
                *((encoder, self._begin_apart) for encoder in self._apart.encoder),
                *((s.module, partial(self._before, s)) for s in self._slots if s.port == "in"),
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
        self._foretold.clear()

    @property
    def is_open(self) -> bool:
        """Whether a forward of the whole model, or of its encoder alone, is under way."""
        return (self._open or self._apart.is_running) and not is_aside()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_aside():
            return
        self._call = call = Call(self.root, args, kwargs)
        self._over = self._ends.after(call.fed, call.past)
        self._taken: dict[str, list[tuple[Tensor, Columns]]] = {k.key: [] for k in self.kinds}
        self._frame: Frame | None = None
        self._windows: dict[int, Frame] = {}
        self._cut = set[str]()
        self._foretold.begin(call)
        for slot in self._slots:
            slot.calls = 0
        if self._backward is not None:
            self._backward.begin(call.named)
        self._open = True
        self._take_apart(call, self._apart.times(call.named))

    def _begin_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open or is_aside():
            return
        self._apart.begin(args, kwargs)
        for slot in self._slots:
            slot.calls = 0

    def _end_apart(self, output: Any) -> None:
        if self._apart.is_running and not is_aside():
            self._apart.end(output)

    def _take_apart(self, of: Call, times: int) -> None:
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
            if not of.past:
                self._take(kind, leaf, call)
                continue
            self._framed(leaf.shape[row], leaf.device)
            none = torch.zeros(0, dtype=torch.int64)
            self._taken[kind.key] = [(leaf.new_zeros(0, kind.schema.dim), Columns(none, none))]

    def _take(self, kind: Kind, leaf: Tensor, call: int) -> None:
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
            x = leaf.detach() if leaf.requires_grad else leaf
            frame, x = self._framed_leaf(kind, x)
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

    def _after(self, slot: Slot, output: Any) -> Any:
        """Take from an output; return one in its place only where a gradient is wanted."""
        if not self.is_open:
            return None
        kinds, call = slot.called()
        for kind in kinds:
            leaf = find(output, kind.site.key)
            if leaf is None:
                raise SiteError(f"Guard: {str(kind.site)!r} returned no such tensor this time.")
            self._take(kind, leaf, call)
        if self._backward is None or self._apart.is_running:
            return None
        changed = self._backward.watch(kinds, output)
        return None if changed is output else changed

    def _before(
        self, slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take from the inputs; return some in their place only where a gradient is wanted."""
        if not self.is_open:
            return None
        kinds, call = slot.called()
        for kind in kinds:
            leaf = find_input(slot.module, args, kwargs, kind.site.key)[1]
            self._take(kind, leaf, call)
        if self._backward is None or self._apart.is_running or not kinds:
            return None
        for kind in kinds:
            args, kwargs = self._backward.watch_input(kind, slot.module, args, kwargs)
        return args, kwargs

    def _framed_leaf(self, kind: Kind, leaf: Tensor) -> tuple[Frame, Tensor]:
        """Return the tokens that an output stands for, and the output with what came before it."""
        words, fed, call = kind.reduction.axes.words, self._call.fed, self._call
        frame, start = self._framed(leaf.shape[words.index("row")], leaf.device), 0
        if fed is not None and call.axis in words:
            start = fed.shape[-1] - leaf.shape[words.index(call.axis)]
        self._require_whole(kind, start)
        if call.past or start > 0:
            self._cut.add(kind.key)
        if fed is None or call.axis not in words:
            return frame, leaf
        frame = self._window(start, frame) if start > 0 else frame
        if kind.reduction.reducer.name != "predictions":
            return frame, leaf
        logits = kind.reduction.axes.last_dim(leaf)
        self._foretold.say(kind.key, _last(logits, frame.real(call.axis, logits.shape[1])))
        said = None if start else self._foretold.said(kind.key)
        if said is None:
            return frame, leaf
        at = words.index(call.axis)
        return self._window(-1, frame), torch.cat([said.unsqueeze(at), leaf], at)

    def _window(self, start: int, frame: Frame) -> Frame:
        """Return the tokens from a place in this call on, the same ones each time."""
        if start not in self._windows:
            assert self._call.fed is not None  # asked for only where tokens are fed
            batch = window(frame.batch, self._call.axis, self._call.fed, start)
            self._windows[start] = Frame(batch, frame.device, self._shared)
        return self._windows[start]

    def _framed(self, n: int, device: torch.device) -> Frame:
        if self._frame is None:
            marked = None
            if self._special is not None:
                marked = self._call.marked(self._special, self._ids_apart)
            self._frame = Frame(self._call.inputs(n, marked), device, self._shared)
            self._frame.is_careful = self._special is not None or self._call.is_padded
        return self._frame

    def _require_whole(self, kind: Kind, left_out: int) -> None:
        """Refuse a part of a text where a reducer needs all of it."""
        name, got = kind.reduction.reducer.name, ""
        if name not in WHOLE_TEXTS or not kind.reduction.is_over_tokens:
            return
        if self._call.past:
            got = f"a forward that goes on after {self._call.past} cached tokens"
        elif left_out > 0:
            got = f"states without those of the first {left_out} tokens, as generate makes logits"
        if got:
            raise InputError(
                f"Guard: the reducer {name!r} needs the whole text, got {got}. Call the model on "
                "the finished text, or fit with the reducer last or tokens to guard generation."
            )

    def _end(self, output: Any) -> Any:
        if is_aside():
            return None
        self._open = False
        missing = [key for key, taken in self._taken.items() if not taken]
        if missing or self._frame is None:
            advice = "Fit at modules that run for every input"
            if self._call.named.get("encoder_outputs") is not None:
                advice = "Open the guard before the encoder runs"
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
            found = moved_logits(self.root, self._call.args, self._call.kwargs, self._step)
            moved["perturbed_logits"] = found
        batch = self._batch(self._frame, None if logits is None else logits.detach(), grad, moved)
        self._foretold.end(self._call, output)
        with torch.no_grad():
            self._seen(batch, self._call.past > 0, self._cut)
        return output if changed else None

    def _finish(self) -> None:
        """Leave nothing of a forward behind, also of one that raised."""
        if is_aside():
            return
        self._open, self._taken, self._frame = False, {}, None
        self._call, self._over, self._ids_apart = self._no_call, None, None
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
            side=own.label,  # -1: none is a member of a pair
            extra=extra,
        )


def _kind(schema: SiteSchema) -> Kind:
    if schema.site.port not in ("out", "in"):
        raise InputError(
            f"Guard: expected sites with port out or in, got {str(schema.site)!r}. Fit at those."
        )
    axes = Axes(tuple(schema.axes.split()), schema.prefix)
    return Kind(schema.key, schema.site, Reduction(schema.reducer, axes), schema)


def _last(x: Tensor, real: Tensor) -> Tensor:
    """Return what stands at each example's last real token: (example, dim), a copy."""
    index = real.shape[1] - 1 - real.flip(1).to(torch.uint8).argmax(1)
    return x[torch.arange(len(x), device=x.device), index.to(x.device)]


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
