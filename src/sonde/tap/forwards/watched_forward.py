"""Rows at the sites of one forward pass of a watched model, for its new tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, SiteError, SondeError
from sonde.core.inputs import InputBatch
from sonde.core.sinks import Sinks
from sonde.tap.forwards.carried_logits import CarriedLogits
from sonde.tap.hooks.call import CallArguments
from sonde.tap.model.probe import find_logits
from sonde.tap.rows.frame import Frame, RowPlaces
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.shared import SharedSelections

WHOLE_TEXTS = ("mean", "cls")


@dataclass(frozen=True)
class Watching:
    """Data shared by all forward passes of one model.

    Parameters
    ----------
    kinds : tuple of Kind
    task : str
    special : Int[Tensor, "token"] or None
        Ids of tokens that are left out of ``mean`` and ``tokens``.
    shared : SharedSelections
        Index tensors.
    output : str or None
        Name of the output that holds the logits; None for ``logits`` or a lone tensor.
    sinks : Sinks
        Roles of tokens that bring no rows.
    """

    kinds: tuple[Kind, ...]
    task: str
    special: Tensor | None
    shared: SharedSelections
    output: str | None = None
    sinks: Sinks = Sinks.NONE


class WatchedForward:
    """Rows and columns of one forward pass, from its first site to its last.

    Parameters
    ----------
    watching : Watching
    call : CallArguments
        The arguments of the forward.
    over : Bool[Tensor, "example"] or None
        Sequences that ended in an earlier step of ``generate``: they bring no rows.
    carried : CarriedLogits
        Logits that the forward before on these texts made of the next token.

    Attributes
    ----------
    frame : Frame or None
        The tokens; None before the first rows.
    cut : set of str
        Keys of sites that brought rows of a part of their text.
    ids_apart : Tensor or None
        Tokens of an encoder that ran before this forward.
    """

    def __init__(
        self,
        watching: Watching,
        call: CallArguments,
        over: Tensor | None,
        carried: CarriedLogits,
    ) -> None:
        self._watching, self._call, self._over = watching, call, over
        self._carried = carried
        self._taken: dict[str, list[tuple[Tensor, RowPlaces]]] = {k.key: [] for k in watching.kinds}
        self._windows: dict[int, Frame] = {}
        self.frame: Frame | None = None
        self.cut = set[str]()
        self.ids_apart: Tensor | None = None

    @property
    def missing(self) -> list[str]:
        """Keys of sites without rows."""
        return [key for key, taken in self._taken.items() if not taken]

    def take(self, kind: Kind, leaf: Tensor, call: int) -> None:
        """Store the rows of one call of a site."""
        taken = self._taken[kind.key]
        if kind.site.call is None and taken:
            raise SiteError(
                f"Guard: {kind.site.path!r} is called more than once in this forward pass, "
                "but was called once when the probe was fitted. Fit at @last or @all."
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

    def take_none(self, kind: Kind, leaf: Tensor) -> None:
        """Record that an earlier forward pass already gave a site's rows."""
        self._framed(leaf.shape[kind.reduction.axes.words.index("row")], leaf.device)
        none = torch.zeros(0, dtype=torch.int64)
        self._taken[kind.key] = [(leaf.new_zeros(0, kind.schema.dim), RowPlaces(none, none))]

    def _framed_leaf(self, kind: Kind, leaf: Tensor) -> tuple[Frame, Tensor]:
        """Return the frame of an output's tokens, and the output after any carried logits."""
        words, fed, call = kind.reduction.axes.words, self._call.fed, self._call
        frame, start = self._framed(leaf.shape[words.index("row")], leaf.device), 0
        if fed is not None and call.axis in words:
            start = fed.shape[-1] - leaf.shape[words.index(call.axis)]
        self._require_whole(kind, start)
        if call.past or start > 0:
            self.cut.add(kind.key)
        if fed is None or call.axis not in words:
            return frame, leaf
        frame = self._window(start, frame) if start > 0 else frame
        if kind.reduction.reducer.name != "predictions":
            return frame, leaf
        logits = kind.reduction.axes.last_dim(leaf)
        self._carried.say(kind.key, _last(logits, frame.real(call.axis, logits.shape[1])))
        carried = None if start else self._carried.said(kind.key)
        if carried is None:
            return frame, leaf
        at = words.index(call.axis)
        return self._window(-1, frame), torch.cat([carried.unsqueeze(at), leaf], at)

    def _window(self, start: int, frame: Frame) -> Frame:
        """Return the frame of the tokens from ``start`` on, cached."""
        if start not in self._windows:
            assert self._call.fed is not None  # asked for only where tokens are fed
            batch = window(frame.batch, self._call.axis, self._call.fed, start)
            self._windows[start] = Frame(batch, frame.device, self._watching.shared)
        return self._windows[start]

    def _framed(self, n: int, device: torch.device) -> Frame:
        if self.frame is None:
            special, marked = self._watching.special, None
            if special is not None:
                marked = self._call.marked(special, self.ids_apart)
            batch = self._without_sinks(self._call.inputs(n, marked))
            self.frame = Frame(batch, device, self._watching.shared)
        return self.frame

    def _without_sinks(self, batch: InputBatch) -> InputBatch:
        """Return inputs with a mask of their sinks; cached tokens were first in their text."""
        sinks, fed = self._watching.sinks, self._call.fed
        if not sinks or fed is None or self._call.axis != "pos":
            return batch
        if self._call.past:
            sinks = replace(sinks, first=False)
        real = torch.ones(fed.shape, dtype=torch.bool) if batch.mask is None else batch.mask
        special = None if batch.special is None else batch.special.bool().cpu()
        return replace(batch, sink=sinks.mask(real.bool().cpu(), special))

    def _require_whole(self, kind: Kind, left_out: int) -> None:
        """Raise if a reducer needs the whole text and only a part was read."""
        name, got = kind.reduction.reducer.name, ""
        if name not in WHOLE_TEXTS or not kind.reduction.is_over_tokens:
            return
        if self._call.past:
            got = f"a forward pass that continues after {self._call.past} cached tokens"
        elif left_out > 0:
            got = (
                f"states without those of the first {left_out} tokens, as generate computes logits"
            )
        if got:
            raise InputError(
                f"Guard: the reducer {name!r} needs the whole text, got {got}. Call the model on "
                "the finished text, or fit with the reducer last or tokens to guard generation."
            )

    def logits(self, output: Any, frame: Frame) -> Tensor | None:
        """Return the logits of each example, or of the last token for texts."""
        logits = find_logits(output, self._watching.output)
        if logits is None or logits.ndim == 2:
            return logits if logits is None or logits.shape[0] == frame.n else None
        if self._watching.task != "causal" or logits.ndim != 3:
            return None
        mask = frame.masks["pos"]
        if mask is None or mask.shape[1] == logits.shape[1]:
            last = frame.one("pos", logits.shape[1], "last")
            return logits[tuple(frame.on_device(index, logits) for index in last)]
        if not bool(mask[:, -1].all()):
            raise InputError(
                "Guard: expected logits for every token, or padding on the left, got logits of "
                f"{logits.shape[1]} of {mask.shape[1]} tokens with padding on the right."
            )
        return logits[:, -1]

    def batch(
        self,
        frame: Frame,
        logits: Tensor | None,
        grad: dict[str, Tensor],
        extra: dict[str, Tensor],
    ) -> Batch:
        """Return the rows of all sites, without finished sequences."""
        rows: dict[str, Tensor] = {}
        columns: dict[str, RowPlaces] = {}
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
            sink={key: c.sink for key, c in columns.items() if c.sink is not None},
            side=own.label,  # -1: none is a member of a pair
            extra=extra,
        )


def _last(x: Tensor, real: Tensor) -> Tensor:
    """Return the values at each example's last real token: (example, dim), a copy."""
    index = real.shape[1] - 1 - real.flip(1).to(torch.uint8).argmax(1)
    return x[torch.arange(len(x), device=x.device), index.to(x.device)]


def _joined(taken: Sequence[tuple[Tensor, RowPlaces]]) -> tuple[Tensor, RowPlaces]:
    columns = RowPlaces(
        torch.cat([c.example for _, c in taken]), torch.cat([c.position for _, c in taken])
    )
    return torch.cat([rows for rows, _ in taken]), columns


def _at(index: Tensor, columns: RowPlaces) -> RowPlaces:
    grid, special, sink = columns.grid, columns.special, columns.sink
    return RowPlaces(
        columns.example[index],
        columns.position[index],
        None if grid is None else grid[index],
        None if special is None else special[index],
        None if sink is None else sink[index],
    )


def window(batch: InputBatch, axis: str, ids: Tensor, start: int) -> InputBatch:
    """Return the inputs from a token on, with the axis of their ids.

    ``generate`` asks for the logits of a prompt's last token alone. ``start = -1`` gives all
    tokens after one more token, which was fed in an earlier call.

    Parameters
    ----------
    batch : InputBatch
    axis : {"pos", "pos2"}
    ids : Int[Tensor, "example pos"]
    start : int
    """
    name, mask = ("input_ids", "mask") if axis == "pos" else ("decoder_input_ids", "decoder_mask")
    real = getattr(batch, mask)
    real = torch.ones(ids.shape, dtype=torch.bool) if real is None else real
    first = torch.zeros(len(ids), dtype=torch.int64) if batch.first is None else batch.first
    special, sink = (batch.special, batch.sink) if axis == "pos" else (None, None)
    return replace(
        batch,
        args=(),
        kwargs={name: _from(ids, start, 0)},
        special=None if special is None else _from(special, start, False),
        sink=None if sink is None else _from(sink, start, False),
        first=first + (real[:, :start].sum(1).cpu() if start > 0 else start),
        **{mask: _from(real, start, True)},
    )


def _from(x: Tensor, start: int, before: int | bool) -> Tensor:
    if start >= 0:
        return x[:, start:]
    return torch.cat([x.new_full((len(x), -start), before), x], dim=1)
