"""Rows of growing texts, reduced call by call so that outputs are not stored.

A stretch is what one call of the model reads: the prompts, then the next tokens of each text.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.tap.rows.frame import POOLED, Frame
from sonde.tap.rows.reduce import Reduction


@dataclass(frozen=True)
class Stretch:
    """The tokens that one call reads, with masks of real and special tokens.

    ``begins`` marks the texts that had no real token before this call.
    """

    start: int
    real: Bool[Tensor, "example pos"]
    special: Bool[Tensor, "example pos"] | None
    begins: Bool[Tensor, "example"]
    _there: dict[Hashable, Tensor] = field(default_factory=dict[Hashable, Tensor])

    def on_device(self, name: str, selection: Tensor, x: Tensor) -> Tensor:
        """Return a selection on the device of an output, copied once for all sites."""
        key = name, x.device
        if key not in self._there:
            self._there[key] = selection.to(x.device)
        return self._there[key]

    def counted(self, keep_special: bool) -> Bool[Tensor, "example pos"]:
        """Return the mask of the tokens that a mean includes."""
        if self.special is None or keep_special:
            return self.real
        return self.real & ~self.special

    @cached_property
    def any_real(self) -> Bool[Tensor, "example"]:
        """Mask of texts with a real token in this stretch."""
        return self.real.any(dim=1)

    @cached_property
    def first(self) -> Int[Tensor, "example"]:
        """Position of each text's first real token in this stretch."""
        return self.real.to(torch.uint8).argmax(dim=1)

    @cached_property
    def last(self) -> Int[Tensor, "example"]:
        """Position of each text's last real token in this stretch."""
        return self.real.shape[1] - 1 - self.real.flip(1).to(torch.uint8).argmax(dim=1)


class Marks:
    """Masks of real tokens call by call: the prompt's tokens, then those up to the first end.

    Parameters
    ----------
    prompts : InputBatch
        Padded on the left.
    ends, specials : sequence of int
        Tokens that end a text, and those that the tokenizer declares special.
    """

    def __init__(self, prompts: InputBatch, ends: list[int], specials: list[int]) -> None:
        ids = prompts.kwargs["input_ids"]
        self.shape = ids.shape
        mask = prompts.mask
        self._mask = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.bool()
        self._special = prompts.apart
        self._ends, self._specials = torch.tensor(ends), torch.tensor(specials)
        self._over = torch.zeros(len(ids), 1, dtype=torch.bool)
        self._begun = torch.zeros(len(ids), dtype=torch.bool)
        self._reached = 0

    def stretch(self, ids: Int[Tensor, "example pos"]) -> Stretch:
        """Return the stretch of the next tokens: first the prompts."""
        start, self._reached = self._reached, self._reached + ids.shape[1]
        if not start:
            real, special = self._mask, self._special
        else:
            ids = ids.cpu()
            ended = torch.isin(ids, self._ends.to(ids.dtype))
            over = self._over | (ended.long().cumsum(dim=1) > ended.long())
            real, self._over = ~over, (over | ended)[:, -1:]
            special = torch.isin(ids, self._specials.to(ids.dtype))
        begins = real.any(dim=1) & ~self._begun
        self._begun = self._begun | begins
        return Stretch(start, real, None if self._special is None else special, begins)


class Growing(ABC):
    """The rows of one output while texts grow."""

    @abstractmethod
    def take(self, x: Float[Tensor, "example pos dim"], stretch: Stretch) -> None:
        """Add the output over one stretch."""

    @abstractmethod
    def rows(self, frame: Frame) -> tuple[Float[Tensor, "row dim"], Hashable] | None:
        """Return the rows of the whole texts and their layout, or None if a text has none."""


@final
class Tokens(Growing):
    """Outputs of all tokens, collected in a buffer of the longest text's length."""

    def __init__(self, reduction: Reduction, length: int) -> None:
        self._reduction, self._length = reduction, length
        self._x: Tensor | None = None

    def take(self, x: Float[Tensor, "example pos dim"], stretch: Stretch) -> None:
        """Copy a stretch to its position in the buffer."""
        if self._x is None:
            self._x = x.new_empty(len(x), self._length, x.shape[2])
        self._x[:, stretch.start : stretch.start + x.shape[1]] = x

    def rows(self, frame: Frame) -> tuple[Float[Tensor, "row dim"], Hashable] | None:
        """Return a row for each selected token, and release the outputs."""
        x, self._x = self._x, None
        if x is None:
            return None
        return self._reduction(x[:, : frame.batch.kwargs["input_ids"].shape[1]], frame)


@final
class OneToken(Growing):
    """The first or the last real token of each text."""

    def __init__(self, which: str) -> None:
        self._is_last = which == "last"
        self._x: Tensor | None = None
        self._found = torch.zeros(1, dtype=torch.bool)

    def take(self, x: Float[Tensor, "example pos dim"], stretch: Stretch) -> None:
        """Store each text's first real token, or replace its last real token."""
        if self._x is not None and not self._is_last and bool(self._found.all()):
            return
        index = stretch.last if self._is_last else stretch.first
        at = stretch.on_device("last" if self._is_last else "first", index, x)
        picked = x[torch.arange(len(x), device=x.device), at]
        if self._x is None:
            self._x, self._found = picked, stretch.any_real
            return
        takes = stretch.any_real if self._is_last else stretch.begins
        there = stretch.on_device(f"takes {self._is_last}", takes[:, None], x)
        self._x = torch.where(there, picked, self._x)
        self._found = self._found | takes

    def rows(self, frame: Frame) -> tuple[Float[Tensor, "row dim"], Hashable] | None:
        """Return a row for each text."""
        if self._x is None or not bool(self._found.all()):
            return None
        return self._x, POOLED


@final
class Mean(Growing):
    """The mean over the selected tokens, summed in float64 and returned in the output's type."""

    def __init__(self, keep_special: bool) -> None:
        self._keep_special = keep_special
        self._sum: Tensor | None = None
        self._count = torch.zeros(1, dtype=torch.int64)
        self._dtype = torch.float32

    def take(self, x: Float[Tensor, "example pos dim"], stretch: Stretch) -> None:
        """Add the selected tokens; the others have no effect, even if they are NaN."""
        counted = stretch.counted(self._keep_special)
        left_out = stretch.on_device(f"left out {self._keep_special}", ~counted[:, :, None], x)
        quiet = x.masked_fill(left_out, 0.0)
        part = quiet.sum(dim=1, dtype=_wide(x))
        self._sum = part if self._sum is None else self._sum + part
        self._count, self._dtype = self._count + counted.sum(dim=1), x.dtype

    def rows(self, frame: Frame) -> tuple[Float[Tensor, "row dim"], Hashable] | None:
        """Return a row for each text."""
        if self._sum is None or not bool(self._count.all()):
            return None
        return (self._sum / self._count[:, None].to(self._sum.device)).to(self._dtype), POOLED


def _wide(x: Tensor) -> torch.dtype:
    """Return the number type of sums; Apple's devices lack float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def growing(reduction: Reduction, length: int) -> Growing:
    """Return the collector of a reducer's rows over texts of at most ``length`` tokens."""
    reducer = reduction.reducer
    if reducer.name == "tokens":
        return Tokens(reduction, length)
    if reducer.name == "mean":
        return Mean(reducer.keep_special)
    return OneToken(reducer.name)
