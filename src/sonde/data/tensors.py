"""Tensors, dictionaries of tensors, and items that a user's own function encodes."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import bytes_key, tensor_key
from sonde.core.special_ids import special_ids
from sonde.core.token_masks import (
    NAMES,
    OPEN,
    REAL,
    MaskMeaning,
    find_mask,
    marks_real,
    real_of_pairs,
    real_tokens,
    sights,
)
from sonde.data.encoder import Collated, Encoder, Prepared, called
from sonde.data.images import decode, stored
from sonde.data.sources import Row

_log = logging.getLogger("sonde")
LOOKED_AT = 64
"""Items that are looked at to see whether lengths differ, or whether an input holds pairs."""


@final
@dataclass(frozen=True, eq=False)
class TensorEncoder(Encoder):
    """One tensor per row, stacked to the main input of the model.

    Parameters
    ----------
    column : str
    main : str
        Name of the model's main input.
    names : frozenset of str
        Parameters of the model's ``forward``.
    """

    column: str
    main: str
    names: frozenset[str]
    kind: str = "tensor"

    def key(self, row: Row) -> bytes:
        """Hash type, shape and bytes."""
        return tensor_key(column_tensor(row.get(self.column), self.column))

    def size(self, row: Row) -> int:
        """Return the bytes of the tensor."""
        x = column_tensor(row.get(self.column), self.column)
        return x.numel() * x.element_size()

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return tensors unchanged."""
        return [
            Prepared(column_tensor(rows[row].get(self.column), self.column)) for row, _ in wanted
        ]

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Stack along a new first axis."""
        x = stacked_items([i.value for i in items], self.column)
        return Collated(*called(self.main, x, self.names))

    def identity(self) -> dict[str, Any]:
        """Return the column as identity."""
        return {"kind": self.kind, "inputs": [self.column]}


@final
@dataclass(frozen=True, eq=False)
class FeatureEncoder(Encoder):
    """A dictionary of tensors per row: keyword arguments of ``forward`` without batch axis.

    Parameters
    ----------
    inputs : tuple of str
    marks : bool or None
        Whether the mask of padding differs from zero at real tokens; None before rows are seen.
    may_mask : bool, default=True
        Whether an input may be a mask of padding: an input called ``mask`` is no such mask if both
        values occur on either side.
    token_axes : dict of str to tuple of int
        The axes of an input that hold the tokens of the mask, if the data decide it.
    """

    inputs: tuple[str, ...]
    kind: str = "features"
    marks: bool | None = None
    may_mask: bool = True
    token_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def settled(self, rows: Iterable[Row]) -> "FeatureEncoder":
        """Decide from all masks which of their values marks padding, and the axes of tokens."""
        rows = iter(rows)
        first = list(islice(rows, LOOKED_AT))
        encoder = self._with_marks(chain(first, rows))
        return replace(encoder, token_axes=find_token_axes(encoder._made(row) for row in first))

    def _made(self, row: Row) -> Collated:
        try:
            return self.collate(self.prepare([row], [(0, 0)]))
        except InputError:  # a broken row, which is left out
            return Collated()

    def _with_marks(self, rows: Iterable[Row]) -> "FeatureEncoder":
        if not set(self.inputs) & set(NAMES):
            return self
        masks = (find_mask(self._masks(row)) for row in rows)
        first = next((named for named in masks if named is not None), None)
        if first is None:
            return self
        name, mask = first
        more = (named[1] for named in masks if named is not None and named[0] == name)
        try:
            return replace(self, marks=marks_real(name, chain([mask], more)))
        except InputError:
            if name not in OPEN:
                raise
            return replace(self, may_mask=False)

    def _masks(self, row: Row) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name in (n for n in self.inputs if n in NAMES):
            with suppress(InputError):  # of a broken row, which is left out
                named[name] = column_tensor(row.get(name), name)[None]
        return named

    def key(self, row: Row) -> bytes:
        """Hash the tensors in the order of their names."""
        return bytes_key(
            b"".join(n.encode() + tensor_key(column_tensor(row.get(n), n)) for n in self.inputs)
        )

    def size(self, row: Row) -> int:
        """Return the bytes of all tensors."""
        tensors = [column_tensor(row.get(n), n) for n in self.inputs]
        return sum(x.numel() * x.element_size() for x in tensors)

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return tensors unchanged."""
        return [
            Prepared({n: column_tensor(rows[r].get(n), n) for n in self.inputs}) for r, _ in wanted
        ]

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Stack each along a new first axis."""
        kwargs = {n: stacked_items([i.value[n] for i in items], n) for n in self.inputs}
        real = partial(real_tokens, marks=self.marks)
        mask = token_mask(kwargs, real) if self.may_mask else None
        return Collated(kwargs=kwargs, mask=mask, token_axes=self.token_axes)

    def identity(self) -> dict[str, Any]:
        """Return the argument names as identity."""
        return {"kind": self.kind, "inputs": list(self.inputs)}


@final
@dataclass(frozen=True, eq=False)
class CallableEncoder(Encoder):
    """Items that the user's own ``processor`` turns into a tensor or a dictionary of tensors.

    Parameters
    ----------
    processor : callable
        Takes one text, Pillow image, or tensor; returns model input without a batch axis.
    column : str
    base : Path
        Where relative paths of images start.
    image : bool
        Whether the column holds images, which are decoded before the call.
    meaning : MaskMeaning
        The meaning of the masks that the processor returns.
    by_length : bool
        Whether items differ in length, so that only items of one length make a batch.
    token_axes : dict of str to tuple of int
        The axes of a returned tensor that hold the tokens of the mask, if the data decide it.
    """

    processor: Callable[[Any], Any]
    column: str
    base: Path
    image: bool
    kind: str = "callable"
    meaning: MaskMeaning = field(default_factory=MaskMeaning)
    by_length: bool = False
    token_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def settled(self, rows: Iterable[Row]) -> "CallableEncoder":
        """Decide from the first items which value marks padding, and whether lengths differ."""
        is_told, lengths, first = False, set[int](), list[Mapping[str, Any]]()
        for i, row in enumerate(rows):
            with suppress(Exception):  # whatever the processor raises, the item's batch says
                item = self._made(row)
                if isinstance(item, Mapping) and i < LOOKED_AT:
                    first.append(item)
                lengths.add(_length(item))
                if is_told:
                    if len(lengths) > 1 or i >= LOOKED_AT:
                        break
                    continue
                named = item if isinstance(item, Mapping) else {}
                masks = {n: column_tensor(x, n)[None] for n, x in named.items() if n in NAMES}
                named_mask = find_mask(masks)
                is_told = named_mask is None or self.meaning.is_told_by(*named_mask)
        own = replace(self, meaning=deepcopy(self.meaning))  # which the masks must not settle yet
        axes = find_token_axes(own._alone(item) for item in first)
        return replace(self, by_length=len(lengths) > 1, token_axes=axes)

    def _alone(self, made: Mapping[str, Any]) -> Collated:
        try:
            return self._collated([made])
        except InputError:  # a broken item, which its batch says
            return Collated()

    def key(self, row: Row) -> bytes:
        """Hash the item as stored."""
        return _item_key(self._stored(row), self.column)

    def size(self, row: Row) -> int:
        """Return the bytes of the item as stored."""
        value = self._stored(row)
        if isinstance(value, str | bytes):
            return len(value.encode() if isinstance(value, str) else value)
        x = column_tensor(value, self.column)
        return x.numel() * x.element_size()

    def _stored(self, row: Row) -> Any:
        return stored(row, self.column, self.base) if self.image else row.get(self.column)

    def _made(self, row: Row) -> Any:
        value = self._stored(row)
        item = decode(value) if self.image else value
        try:
            processed = self.processor(item)
        except InputError:
            raise
        except Exception as error:
            kind = "image" if self.image else "text" if isinstance(item, str) else "item"
            raise InputError(
                f"processor: it failed on this {kind} with {type(error).__name__}: {error}. It is "
                f"called with one {kind} at a time, and returns its tensors without a batch axis."
            ) from error
        return _without_batch(processed) if isinstance(processed, Mapping) else processed

    @property
    def even(self) -> bool:
        """True if a batch holds only items of equal length, since a function states no padding."""
        return self.by_length

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return items as they are, calling the processor only to learn their lengths."""
        if not self.by_length:
            return [Prepared(rows[row]) for row, _ in wanted]
        return [self._measured(rows[row]) for row, _ in wanted]

    def _measured(self, row: Row) -> Prepared:
        """Return the processor's output for an item, with its length."""
        try:
            item = self._made(row)
        except InputError as error:
            return Prepared(error)
        return Prepared(item, length=_length(item))

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Call the processor on each item and stack what it returns."""
        values, bad = [], {}
        for i, item in enumerate(items):
            try:
                if isinstance(item.value, InputError):
                    raise item.value
                values.append(item.value if self.by_length else self._made(item.value))
            except InputError as error:
                bad[i] = str(error)
        if not values:
            return Collated(bad=bad)
        if all(isinstance(m, Mapping) for m in values):
            return self._collated(values, bad)
        return Collated(
            (stacked_items([column_tensor(m, "processor") for m in values], "processor"),), bad=bad
        )

    def _collated(
        self, made: Sequence[Mapping[str, Any]], bad: dict[int, str] | None = None
    ) -> Collated:
        kwargs = {
            n: stacked_items([column_tensor(m.get(n), n) for m in made], n) for n in sorted(made[0])
        }
        mask = token_mask(kwargs, self.meaning.real_tokens)
        special = self._special(kwargs, mask)
        return Collated(
            kwargs=kwargs, mask=mask, special=special, token_axes=self.token_axes, bad=bad or {}
        )

    def _special(
        self, kwargs: Mapping[str, Tensor], mask: Bool[Tensor, "_row _pos"] | None
    ) -> Bool[Tensor, "_row _pos"] | None:
        declared, ids = special_ids(self.processor), kwargs.get("input_ids")
        if mask is None or ids is None or ids.shape != mask.shape or not declared:
            return None
        return torch.isin(ids, torch.tensor(sorted(declared))) & mask

    def identity(self) -> dict[str, Any]:
        """Return the column and the processor as identity."""
        name = getattr(self.processor, "__qualname__", type(self.processor).__qualname__)
        return {"kind": self.kind, "inputs": [self.column], "processor": name}


def _without_batch(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return one text's tokens without the tokenizer's batch axis."""
    tensors = {name: column_tensor(value, name) for name, value in made.items()}
    is_batch = all(
        x.ndim == 2 and len(x) == 1 and not x.is_floating_point() for x in tensors.values()
    )
    return {name: x[0] for name, x in tensors.items()} if is_batch else made


def _length(made: Any) -> int:
    """Return the first axis's length in a processor's output; 1 for single numbers."""
    first = next(iter(made.values())) if isinstance(made, Mapping) else made
    return (*column_tensor(first, "processor").shape, 1)[0]


def token_mask(
    kwargs: Mapping[str, Tensor], real: Callable[[str, Tensor], Tensor]
) -> Bool[Tensor, "_row _pos"] | None:
    """Return the mask of real tokens, beside token ids, embeddings or features.

    ``real`` returns the real tokens, given the name of a mask and the mask.
    """
    named_mask = find_mask(kwargs)
    if named_mask is None:
        pairs = kwargs.get(REAL)
        if pairs is None or pairs.ndim not in (3, 4):
            return None
        return real_of_pairs(sights(pairs.cpu()))
    own, mask = named_mask
    for name, x in kwargs.items():
        ids = x.ndim == 2 and not x.is_floating_point() and name != own
        if (ids or x.ndim == 3) and x.shape[:2] == mask.shape:
            if own != REAL:
                _say_once(own)
            return real(own, mask.cpu())
    return None


def find_token_axes(examples: Iterable[Collated]) -> dict[str, tuple[int, ...]]:
    """Return the axes of inputs that hold the tokens of the mask, by name, if examples decide it.

    An input with two axes as long as the mask holds either pairs of tokens, or features that are as
    many as the tokens: entries of a real and a padded token are equal in the first case only. An
    input whose padding is that of another mask holds no tokens of this mask.
    """
    padded = [
        (example.kwargs, example.mask)
        for example in examples
        if example.mask is not None and example.mask.any() and not example.mask.all()
    ]
    others = {
        name for named, mask in padded for name, x in named.items() if _is_other_mask(x, mask)
    }
    axes_of: dict[str, tuple[int, ...]] = {}
    for name in {n: None for named, _ in padded for n in named}:
        given = [(named[name], mask, named) for named, mask in padded if name in named]
        axes = [
            axis
            for axis in range(1, given[0][0].ndim)
            if all(axis < x.ndim and x.shape[axis] == mask.shape[1] for x, mask, _ in given)
        ]
        if len(axes) > 1:
            are_pairs = all(_is_filled(x, axes, mask) for x, mask, _ in given)
            axes_of[name] = tuple(axes) if are_pairs else tuple(axes[:1])
        elif axes and others and not all(_is_filled(x, axes, mask) for x, mask, _ in given):
            is_theirs = any(
                all(_is_filled(x, axes, named[o] != 0) for x, _, named in given) for o in others
            )
            axes_of[name] = () if is_theirs else tuple(axes)
    return axes_of


def _is_other_mask(x: Tensor, mask: Tensor) -> bool:
    """Return whether an input has two values, one on either side, that do not follow the mask."""
    if x.shape != mask.shape or len(torch.unique(x)) != 2:
        return False
    own = x[0] != 0
    is_alike = own == mask[0]
    is_one_sided = int((own[1:] != own[:-1]).sum()) == 1
    return is_one_sided and bool(is_alike.any()) and not bool(is_alike.all())


def _is_filled(x: Tensor, axes: Sequence[int], mask: Tensor) -> bool:
    """Return whether padded tokens have one value along these axes, beside real tokens if any."""
    real, padded = (torch.nonzero(m).flatten() for m in (mask[0], ~mask[0]))
    if not len(real) or not len(padded):
        return True
    for at in axes:
        part = x.index_select(at, padded)
        for axis in axes:
            part = part if axis == at else part.index_select(axis, real)
        if not torch.equal(part.amax(tuple(axes)), part.amin(tuple(axes))):
            return False
    return True


@cache
def _say_once(name: str) -> None:
    open_case = ", taken as true at real tokens where its values leave that open"
    _log.warning("padding is read from %r%s", name, open_case if name in OPEN else "")


def column_tensor(value: Any, name: str) -> Shaped[Tensor, "..."]:
    """Return a value as a tensor.

    Raises
    ------
    InputError
        If it is not an array of numbers.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if value is None:
        raise InputError(f"no value in column {name!r}")
    try:
        array = np.array(value)
        if array.dtype == np.float64 and not isinstance(value, np.ndarray):
            array = array.astype(np.float32)
        return torch.from_numpy(array)
    except (TypeError, ValueError):
        raise InputError(
            f"expected an array of numbers in {name!r}, got {type(value).__name__}"
        ) from None


def stacked_items(values: Sequence[Shaped[Tensor, "..."]], name: str) -> Shaped[Tensor, "..."]:
    """Return tensors of equal shape as a batch, in their own type."""
    shapes = sorted({tuple(v.shape) for v in values})
    if len(shapes) > 1:
        raise InputError(
            f"{name}: expected items of equal shape, got {', '.join(map(str, shapes[:4]))}. Pad "
            "or crop them to one shape, or pass batch_size=1 (--batch-size 1)."
        )
    return torch.stack([v.cpu() for v in values])


def _item_key(found: Any, name: str) -> bytes:
    if isinstance(found, str):
        return bytes_key(found.encode("utf-8", "surrogatepass"))
    if isinstance(found, bytes):
        return bytes_key(found)
    return tensor_key(column_tensor(found, name))
