"""Tensors collected by hooks in one forward pass: rows, and copies to reduce later."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.tap.rows.frame import POOLED, Frame
from sonde.tap.rows.kind import Kind, at_site
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.nested import DENSE, require_dense
from sonde.tap.rows.waiting import SMALL_BYTES

TOKENS = ("row", "pos", "dim")
STACKED_BYTES = 2**26
"""Copies are stacked up to this size at once."""

Calls = dict[int, tuple[Tensor, Hashable]]
"""Rows and their layout by call of the module."""


class TakenTensor:
    """Rows read from one of a module's input or output tensors.

    ``late`` are the kinds read after the forward, from a copy: kinds that need a copy anyway, and
    then means too. ``soon`` are the kinds read in the hook. All kinds of a large tensor are read
    in the hook.
    """

    def __init__(self, key: str | None, kinds: Sequence[Kind]) -> None:
        self.key, self.kinds = key, tuple(kinds)
        copied = any(k.reduction.can_wait for k in kinds)
        late = [k for k in kinds if copied and (k.reduction.can_wait or k.reduction.is_token_mean)]
        self.late, self.soon = tuple(late), tuple(k for k in kinds if k not in late)
        self.like = tuple(kind.reduction.stack_key for kind in late)
        self.axes = sorted({kind.reduction.axes.kind for kind in late})


class Held(NamedTuple):
    """A copy of a tensor that waits to be reduced to rows."""

    leaf: TakenTensor
    call: int
    copy: Tensor

    def like(self, frame: Frame) -> Hashable:
        """Return a key shared by copies that can be reduced together."""
        copy = self.copy
        alike = tuple(frame.alike(axis, copy.shape[1]) for axis in self.leaf.axes)
        return self.leaf.like, copy.shape, copy.dtype, copy.device, alike


class Taken:
    """Rows of one forward pass by kind and call.

    Parameters
    ----------
    kinds : sequence of Kind
    batch : InputBatch
    frame : Frame
        Which tokens of the batch count.
    writer : MeanWriter
    stop : callable or None
        Ends the forward after the last site that is read; None runs it to its end.

    Attributes
    ----------
    rows, gradients : dict of str to Calls
    held_bytes : int
        Size of the copies in ``held``; ``make_rows`` makes rows from these copies.
    logits : Tensor or None
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        batch: InputBatch,
        frame: Frame,
        writer: MeanWriter,
        stop: Callable[[], None] | None,
    ) -> None:
        self.kinds, self.batch, self.frame = kinds, batch, frame
        self.writer, self.stop = writer, stop
        self.rows: dict[str, Calls] = {kind.key: {} for kind in kinds}
        self.gradients: dict[str, Calls] = {kind.key: {} for kind in kinds}
        self.logits: Tensor | None = None
        self.held: list[Held] = []
        self.held_bytes = 0

    def take(self, leaf: TakenTensor, x: Tensor, call: int) -> None:
        """Reduce a tensor to rows, or store a copy of it until the forward pass is over."""
        if x.layout not in DENSE or type(x) is not Tensor:
            with at_site(leaf.kinds[0].key):
                require_dense(x)
        soon, size = leaf.soon, x.nbytes
        x = x.detach() if x.requires_grad else x
        if size > SMALL_BYTES or x.is_nested or x.ndim != len(TOKENS):
            soon = leaf.kinds
        elif leaf.late:
            self.held.append(Held(leaf, call, x.clone()))
            self.held_bytes += size
        for kind in soon:
            with at_site(kind.key):
                self.rows[kind.key][call] = self._reduced(kind, x)

    def _reduced(self, kind: Kind, x: Tensor) -> tuple[Tensor, Hashable]:
        reduction = kind.reduction
        if reduction.is_token_mean and not x.is_nested and x.ndim == len(TOKENS):
            return reduction.token_mean(x, self.frame, self.writer), POOLED
        rows, layout = reduction(x, self.frame)
        return self.writer.memory.keep(rows), layout

    def take_gradient(self, kinds: Sequence[Kind], grad: Tensor, call: int) -> None:
        """Reduce a gradient to rows."""
        with torch.no_grad():
            for kind in kinds:
                self.gradients[kind.key][call] = kind.reduction(grad.detach(), self.frame)

    def watch(self, kinds: Sequence[Kind], x: Tensor, call: int) -> Tensor:
        """Return the tensor, or a replacement, whose gradient will be read."""
        watched = x if x.requires_grad else x.detach().requires_grad_(True).clone()
        if watched.requires_grad:
            watched.register_hook(lambda grad: self.take_gradient(kinds, grad, call))
        return watched


def make_rows(several: Sequence[Taken]) -> None:
    """Reduce the copies stored in one reader's forward passes to rows, equal kinds together."""
    groups: dict[Hashable, list[tuple[Taken, Held]]] = {}
    for taken in several:
        for one in taken.held:
            groups.setdefault(one.like(taken.frame), []).append((taken, one))
        taken.held, taken.held_bytes = [], 0
    for alike in groups.values():
        step = max(1, STACKED_BYTES // max(1, alike[0][1].copy.nbytes))
        for start in range(0, len(alike), step):
            _make_rows(alike[start : start + step])


def _make_rows(alike: Sequence[tuple[Taken, Held]]) -> None:
    """Reduce copies of one shape, with equal tokens included, to rows."""
    taken, first = alike[0]
    copies = [one.copy for _, one in alike]
    given = False
    for place, kind in enumerate(first.leaf.late):
        with at_site(kind.key):
            rows, layout = kind.reduction.of_copies(copies, taken.frame)
        if isinstance(rows, Tensor):
            # Batches must not share memory; the sites of one may, which fragments the heap less.
            alone, memory = alike[-1][0] is taken, taken.writer.memory
            rows = memory.keep(rows).unbind() if alone else memory.keep_each(rows)
        elif given:
            rows = [copy.clone() for copy in rows]
        else:
            given = True
        for (alike_slot, one), own in zip(alike, rows, strict=True):
            alike_slot.rows[one.leaf.late[place].key][one.call] = own, layout
