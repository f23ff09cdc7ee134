"""The examples of one forward pass, their included tokens, and each row's example.

Sites of one layout share the very same column tensors, and no selection is built twice.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sonde.core.errors import InputError, ShapeError, SiteError
from sonde.core.inputs import InputBatch
from sonde.core.wording import plural
from sonde.tap.model.vary import token_ids
from sonde.tap.rows.means import Mean, PickedMean
from sonde.tap.rows.shared import SharedSelections

POOLED = ("pooled",)
FROM_BEFORE = ("step_deltas", "step_sources")


@dataclass(frozen=True)
class RowPlaces:
    """Example and position of each row."""

    example: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    grid: Int[Tensor, "row 2"] | None = None
    special: Bool[Tensor, "row"] | None = None
    sink: Bool[Tensor, "row"] | None = None


class Frame:
    """The examples of one forward pass, in the form that reductions need.

    Parameters
    ----------
    batch : InputBatch
    device : torch.device
        Where selections are kept beside the states.
    shared : SharedSelections, optional
        Selections of earlier forwards, for batches of a size seen before in which all tokens count.
    """

    def __init__(
        self,
        batch: InputBatch,
        device: torch.device | None = None,
        shared: "SharedSelections | None" = None,
    ) -> None:
        self.batch = batch
        self.shared = SharedSelections() if shared is None else shared
        self.n = len(batch)
        self.device = torch.device("cpu") if device is None else device
        self.masks = {"pos": batch.mask, "pos2": batch.decoder_mask}
        self._whole: dict[Hashable, bool] = {}
        self._padded: dict[str, bool] = {}
        self._selected: dict[Hashable, Tensor] = {}
        self._means: dict[Hashable, Mean] = {}
        self._columns: dict[Hashable, RowPlaces] = {}
        self._nested: dict[Hashable, Frame] = {}

    def on_device(self, selection: Tensor, x: Tensor) -> Tensor:
        """Return a selection on the device of its states, copied there once."""
        if selection.device == x.device:
            return selection
        key = ("on_device", id(selection), x.device)
        if key not in self._selected:
            self._selected[key] = selection.to(x.device, non_blocking=True)
        return self._selected[key]

    def check(self, n: int) -> None:
        """Raise if states have a different number of examples."""
        if n != self.n:
            raise ShapeError(f"expected {plural(self.n, 'example')}, got {n} in the states.")

    @property
    def length(self) -> int | None:
        """Number of tokens of each example with padding, or None if unknown."""
        mask, ids = self.masks["pos"], token_ids(self.batch)
        tokens = ids if mask is None else mask
        return None if tokens is None else tokens.shape[1]

    def of_lengths(self, lengths: tuple[int, ...]) -> "Frame":
        """Return these examples with the given numbers of real tokens."""
        key = ("lengths", lengths)
        if key not in self._nested:
            mask = torch.arange(max(lengths, default=0)) < torch.tensor(lengths)[:, None]
            batch = replace(self.batch, mask=mask, special=None, sink=None)
            self._nested[key] = Frame(batch, self.device)
        return self._nested[key]

    def adopt(self, other: "Frame", key: Hashable, layout: Hashable) -> Hashable:
        """Return a layout for rows of another frame of these examples, and store its columns."""
        adopted = ("adopted", key, layout)
        self._columns[adopted] = other.columns(layout)
        return adopted

    @cached_property
    def first(self) -> Int[Tensor, "example"]:
        """Position of each example's first token in its document."""
        if self.batch.first is None:
            return torch.zeros(self.n, dtype=torch.int64)
        return self.batch.first.cpu().long()

    def real(self, axis: str, length: int) -> Bool[Tensor, "example pos"]:
        """Return the mask of real tokens, and check that its length matches the states."""
        mask = self.masks[axis]
        if mask is None:
            return torch.ones(self.n, length, dtype=torch.bool)
        if mask.shape[1] != length:
            raise SiteError(
                f"expected {mask.shape[1]} tokens as in the attention mask, got {length} states. "
                "Read a site that keeps the tokens of the inputs."
            )
        return mask.bool().cpu().expand(self.n, -1)

    def kept(self, axis: str, length: int, keep_special: bool) -> Bool[Tensor, "example pos"]:
        """Return the mask of included tokens: real, and not special unless those are kept."""
        real = self.real(axis, length)
        special = self.batch.special
        if axis == "pos" and special is not None and not keep_special:
            return real & ~special.bool().cpu()
        return real

    def averaged(self, axis: str, length: int, keep_special: bool) -> Bool[Tensor, "example pos"]:
        """Return the mask of the tokens in a mean: those included, but not sinks."""
        kept, sink = self.kept(axis, length, keep_special), self.batch.sink
        if axis == "pos" and sink is not None and not keep_special:
            return kept & ~sink.bool().cpu()
        return kept

    def is_padded(self, axis: str) -> bool:
        """Return whether an axis's mask excludes a token; computed once."""
        if axis not in self._padded:
            mask = self.masks[axis]
            self._padded[axis] = mask is not None and not all_set(mask)
        return self._padded[axis]

    def is_whole(self, axis: str, length: int, keep_special: bool) -> bool:
        """Return whether every token is included: none is padding, special or a sink."""
        key = (axis, length, keep_special)
        if key not in self._whole:
            apart = self.batch.apart if axis == "pos" and not keep_special else None
            mask = self.masks[axis]
            padded = mask is not None and (mask.shape[1] != length or self.is_padded(axis))
            self._whole[key] = not padded and (apart is None or not bool(apart.any()))
        return self._whole[key] and length > 0

    def alike(self, axis: str, length: int) -> Hashable:
        """Return a key that is equal for frames of equal size in which every token is included."""
        return (self.n,) if self.is_whole(axis, length, False) else id(self)

    def _some(self, mask: Tensor, reducer: str, what: str) -> Tensor:
        empty = ~mask.any(dim=1)
        if bool(empty.any()):
            name = self.batch.ids[int(empty.nonzero()[0])]
            raise InputError(
                f"expected at least one {what} token in each example for the reducer "
                f"{reducer!r}, got none in example {name}. Leave this example out, or keep "
                "special tokens (keep_special=True)."
            )
        return mask

    def mean(
        self, axis: str, length: int, keep_special: bool, dtype: torch.dtype, device: torch.device
    ) -> Mean:
        """Return the mean over the included tokens, for a given number type and device."""
        if self.is_whole(axis, length, keep_special):
            return self.shared.mean(self.n, length, dtype, device)
        key = (axis, length, keep_special, dtype, device)
        if key not in self._means:
            kept = self._some(self.averaged(axis, length, keep_special), "mean", "ordinary")
            self._means[key] = PickedMean(kept, dtype, device)
        return self._means[key]

    def one(self, axis: str, length: int, which: str) -> tuple[Tensor, Tensor]:
        """Return the index of the ``last`` or first (``cls``) real token of each example."""
        key = (which, axis, length)
        if key not in self._selected:
            if self.is_whole(axis, length, True):
                index = torch.full((self.n,), length - 1 if which == "last" else 0)
            else:
                real = self._some(self.real(axis, length), which, "real").to(torch.uint8)
                index = length - 1 - real.flip(1).argmax(1) if which == "last" else real.argmax(1)
            self._selected[key] = index.to(self.device)
        return self._rows, self._selected[key]

    @cached_property
    def _rows(self) -> Tensor:
        return torch.arange(self.n, device=self.device)

    def flat(self, axis: str, length: int, keep_special: bool) -> Int[Tensor, "row"]:
        """Return the index of each included token in the flattened (example, pos) order."""
        key = ("tokens", axis, length, keep_special)
        if key not in self._selected:
            if self.is_whole(axis, length, keep_special):
                flat, example, within = self.shared.flat(axis, self.n, length)
            else:
                real = self._some(self.real(axis, length), "tokens", "real")
                flat = self.kept(axis, length, keep_special).flatten().nonzero().flatten()
                example, within = flat // length, (real.long().cumsum(1) - 1).flatten()[flat]
            self._selected[key] = flat.to(self.device)
            self._columns[key] = self._placed(axis, flat, example, within)
        return self._selected[key]

    def _placed(self, axis: str, flat: Tensor, example: Tensor, within: Tensor) -> RowPlaces:
        marks = (self.batch.special, self.batch.sink) if axis == "pos" else (None, None)
        special, sink = (None if x is None else x.bool().cpu().flatten()[flat] for x in marks)
        position = within if self.batch.first is None else self.first[example] + within
        return RowPlaces(example, position, special=special, sink=sink)

    def predicted(self, axis: str, length: int, keep_special: bool) -> tuple[Tensor, Tensor]:
        """Return the index of each included token's prediction, and the token's id.

        A token is predicted by the real token before it. Indices are into the flattened
        (example, pos) order; the rows' columns are those of the predicted tokens.
        """
        key = ("predictions", axis, length, keep_special)
        if key not in self._selected:
            ids = token_ids(self.batch, axis)
            if ids is None or ids.shape != (self.n, length):
                raise InputError(
                    "Reducer 'predictions': expected the token ids that the model reads, got "
                    f"{'none' if ids is None else tuple(ids.shape)} beside {length} states. Read "
                    "a language model on texts or ids, at the module that returns its logits."
                )
            real = self.real(axis, length)
            came = self.kept(axis, length, keep_special).clone()
            came[:, 0] = False
            came[:, 1:] &= real[:, :-1]
            flat = came.flatten().nonzero().flatten()
            within = (real.long().cumsum(1) - 1).flatten()[flat]
            self._selected[key] = (flat - 1).to(self.device)
            self._selected[key, "ids"] = ids.flatten()[flat.to(ids.device)].to(self.device)
            self._columns[key] = self._placed(axis, flat, flat // length, within)
        return self._selected[key], self._selected[key, "ids"]

    def steps(self, axis: str, length: int, keep_special: bool) -> tuple[Tensor, Tensor]:
        """Return the index of every token of a step, in the flattened order, and its row.

        Rows are the steps of the examples in order; their position is the number of the step.
        """
        key = ("steps", axis, length, keep_special)
        if key not in self._selected:
            segment = self.batch.segment if axis == "pos" else None
            if segment is None or segment.shape != (self.n, length):
                raise InputError(
                    "Reducer 'steps': expected inputs that are divided into steps, got "
                    f"{'none' if segment is None else tuple(segment.shape)} beside {length} "
                    "states. Read rows with a column 'steps', or select a part of the text "
                    "(span=, --span), at a site over their tokens."
                )
            segment = segment.cpu()
            flat = (self.averaged(axis, length, keep_special) & (segment >= 0)).flatten().nonzero()
            example, step = flat[:, 0] // length, segment.flatten()[flat[:, 0]]
            pairs, owner = torch.unique(
                torch.stack([example, step], dim=1), dim=0, return_inverse=True
            )
            self._selected[key] = flat[:, 0].to(self.device)
            self._selected[key, "row"] = owner.to(self.device)
            self._columns[key] = RowPlaces(pairs[:, 0].clone(), pairs[:, 1].clone())
        return self._selected[key], self._selected[key, "row"]

    def steps_after(self, axis: str, length: int) -> tuple[Tensor, Tensor]:
        """Return index and row of every real token of a step, including special tokens.

        Raises
        ------
        InputError
            If a step begins with the first token of its example: no token stands before it.
        """
        flat, row = self.steps(axis, length, True)
        key = ("steps after", axis, length)
        if key not in self._selected:
            first = torch.nonzero(flat.cpu() % length == 0).flatten()
            if len(first):
                name = self.batch.ids[int(flat[first[0]]) // length]
                raise InputError(
                    "expected a token before each step, because the reducers "
                    f"{' and '.join(FROM_BEFORE)} take the state of that token; got none in "
                    f"example {name}. Put a prompt before the first step, or start the span "
                    "later."
                )
            self._selected[key] = flat
        return flat, row

    def columns(self, layout: Hashable) -> RowPlaces:
        """Return the cached columns of a layout."""
        if layout not in self._columns:
            self._columns[layout] = self._built(layout)
        return self._columns[layout]

    def _built(self, layout: Hashable) -> RowPlaces:
        if layout == POOLED:
            example, position = self.shared.pooled(self.n)
            return RowPlaces(example, position if self.batch.first is None else self.first)
        match layout:
            case ("tokens", str(axis), int(length), bool(keep)):
                self.flat(axis, length, keep)
                return self._columns[layout]
            case ("space", tuple(sizes)):
                return self._cells(sizes)
        raise ValueError(f"expected a layout of rows, got {layout!r}")

    def _cells(self, sizes: tuple[int, ...]) -> RowPlaces:
        count = math.prod(sizes)
        example = torch.arange(self.n).repeat_interleave(count)
        position = torch.arange(count).repeat(self.n)
        shape = self._grid(sizes)
        grid = None
        if shape is not None:
            cells = torch.arange(count)
            grid = torch.stack((cells // shape[1], cells % shape[1]), dim=1).repeat(self.n, 1)
        return RowPlaces(example, position, grid)

    def grid_of(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Return the grid height and width of patches on one axis or two.

        Raises
        ------
        InputError
            If the inputs do not say how the patches lie.
        """
        grid = self._grid(sizes)
        if grid is None:
            raise InputError(
                f"Reducer 'patches3': expected patches on a grid, got sizes {sizes}. Read the "
                "reducer 'patches'."
            )
        return grid

    def _grid(self, sizes: tuple[int, ...]) -> tuple[int, int] | None:
        if len(sizes) == 2:
            return sizes[0], sizes[1]
        return self._patch_grid(sizes[0]) if len(sizes) == 1 else None

    def _patch_grid(self, count: int) -> tuple[int, int] | None:
        sizes = self.batch.grid or image_size(self.batch) or (1, 1)
        ratio = sizes[0] / sizes[1]
        height = round(math.sqrt(count * ratio))
        return (height, count // height) if height and height * (count // height) == count else None


def all_set(mask: Tensor) -> bool:
    """Return ``mask.all()``, computed in half the time."""
    return int(torch.count_nonzero(mask)) == mask.numel()


def image_size(batch: InputBatch) -> tuple[int, int] | None:
    """Return height and width of the images in a batch (NCHW), or None."""
    for x in (*batch.args, *batch.kwargs.values()):
        if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point():
            return x.shape[2], x.shape[3]
    return None


def unnamed(n: int) -> InputBatch:
    """Return ``n`` examples without ids, for a forward pass that the user ran by hand."""
    index = torch.arange(n)
    keys = [b""] * n
    return InputBatch(
        args=(),
        kwargs={},
        ids=[str(i) for i in range(n)],
        keys=keys,
        order=index,
        occurrence=torch.zeros_like(index),
        group_keys=keys,
        label=torch.full((n,), -1),
    )
