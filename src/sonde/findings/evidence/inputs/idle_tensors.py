"""Input tensors, channels and masks that have one value in all rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.data.text import DECODER_IDS
from sonde.findings.evidence.record import Evidence
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import InputTensor, input_tensors

ROWS, NUMBERS = 2_048, 20_000_000
LEAST_ROWS: Final = 20
MOST_CHANNELS: Final = 512
FEWEST_PADDED: Final = 0.1
"""Fraction of the rows that end in padding from which a mask of ones is doubtful."""
WIDER: Final = 2
"""Ratio of the largest codes of two columns from which they are no tokens of one vocabulary."""
END: Final = 2
"""Least equal entries at the end of a row that are taken for padding."""


@dataclass(frozen=True)
class IdleTensor:
    """An input tensor, or a part of one, that is the same in all rows.

    Parameters
    ----------
    name : str
        Name of the tensor.
    kind : {"tensor", "rows", "channel", "mask"}
        One value everywhere; equal rows; one value in a channel or column; a mask without padding
        beside a tensor that ends in padding.
    value : float
        The value, or the least one of equal rows.
    where : str
        The channel or column, or the tensor that ends in padding.
    share : float
        Fraction of the rows that end in padding; 1 otherwise.
    index : int
        Position of the channel or column; -1 for others.
    """

    name: str
    kind: Literal["tensor", "rows", "channel", "mask"]
    value: float
    where: str = ""
    share: float = 1.0
    index: int = -1


@dataclass(frozen=True)
class IdleTensors:
    """The parts of the inputs that carry no information, and what was looked at."""

    found: tuple[IdleTensor, ...]
    n_tensors: int
    n_rows: int


def find_idle_tensors(stream: LiveStream, _: Evidence) -> IdleTensors | str:
    """Return the input tensors, channels and masks that are the same in all rows.

    At most 2,048 rows and 20,000,000 numbers, from the first rows of the data on.
    """
    module = stream.model.module
    of_tokenizer = getattr(stream.model.processor, "model_input_names", ())
    seen: dict[str, _Seen] = {}
    n, ends = 0, dict[str, int]()
    for batch in _batches(stream):
        given = input_tensors(module, batch)
        for name, one in given.items():
            if name not in seen:
                seen[name] = _Seen(one, name in of_tokenizer)
            seen[name].add(one.x)
        for name, x in _ending(given).items():
            ends[name] = ends.get(name, 0) + int(x.sum())
        n += len(batch)
    if n < LEAST_ROWS:
        return f"needs {LEAST_ROWS} rows or more"
    idle_inputs = [idle for one in seen.values() for idle in one.found()]
    for name, one in seen.items():
        if one.kind == "mask" and one.low == one.high != 0:
            padded = [
                (count, other)
                for other, count in ends.items()
                if count >= FEWEST_PADDED * n and seen[other].length == one.length
            ]
            if padded:
                count, other = max(padded)
                idle_inputs.append(IdleTensor(name, "mask", one.low, other, count / n))
    return IdleTensors(tuple(idle_inputs), len(seen), n)


def _batches(stream: LiveStream) -> Iterator[InputBatch]:
    left, size, start = NUMBERS, len(stream.inputs), 0
    while start < min(size, ROWS) and left > 0:
        stop = min(start + 256, size, ROWS)
        for batch in stream.inputs.batches(start, stop):
            named = input_tensors(stream.model.module, batch)
            left -= sum(one.x.numel() for one in named.values())
            yield batch
        start = stop


class _Seen:
    """What one tensor was in the rows so far."""

    def __init__(self, one: InputTensor, of_tokenizer: bool = False) -> None:
        self.name, self.kind = one.name, one.kind
        self.is_text = of_tokenizer and one.kind == "codes"
        self.first, self.is_equal = one.x[:1].cpu(), True
        self.length = one.x.shape[1] if one.x.ndim > 1 else 0
        self.low, self.high = float(one.x.flatten()[0]), float(one.x.flatten()[0])
        self.axes = [a for a in (1, 2) if a < one.x.ndim and 1 < one.x.shape[a] <= MOST_CHANNELS]
        self.axes = self.axes[:1] if one.x.ndim in (2, 4) else self.axes
        self.parts: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, x: Shaped[Tensor, "row ..."]) -> None:
        """Add the values of some rows."""
        x = x.detach().cpu()
        x = x.double() if x.is_floating_point() else x.long()
        if x.is_floating_point():  # beside a missing value, no value is everywhere
            x = torch.where(x.isnan(), math.inf, x)
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        same = x.shape[1:] == self.first.shape[1:]
        self.is_equal = self.is_equal and same and bool((x == self.first).all())
        for axis in self.axes if same else ():
            others = [a for a in range(x.ndim) if a != axis]
            low, high = x.amin(others), x.amax(others)
            if axis in self.parts:
                low = torch.minimum(low, self.parts[axis][0])
                high = torch.maximum(high, self.parts[axis][1])
            self.parts[axis] = (low, high)

    def found(self) -> Iterator[IdleTensor]:
        """Yield what is the same in all rows."""
        is_number = self.kind == "numbers"
        if self.kind == "mask":
            return
        if self.low == self.high or self.is_equal:
            is_one = self.first.numel() == 1 and self.name != DECODER_IDS  # its start token
            if is_number or is_one:  # token types are often zero
                kind = "tensor" if self.low == self.high else "rows"
                yield IdleTensor(self.name, kind, self.low)
        elif self.first.ndim > 2 or not is_number:  # columns of a table are another check's
            for axis, (low, high) in self.parts.items():
                stuck = torch.nonzero(low == high).flatten().tolist()
                what = "column" if self.first.ndim == 2 else "channel"
                along = f" (axis {axis})" if self.first.ndim == 3 else ""
                for i in stuck if 0 < len(stuck) < len(low) and self._may_be(axis) else ():
                    where = f"{what} {i}{along}"
                    yield IdleTensor(self.name, "channel", float(low[i]), where, index=i)

    def _may_be(self, axis: int) -> bool:
        """Return whether an axis may hold channels, or columns, rather than steps or tokens.

        Steps are padded in runs at an end, and images at their border. Columns of categories have
        values of their own ranges, tokens share a vocabulary.
        """
        low, high = self.parts[axis]
        stuck = low == high
        if self.kind == "codes":
            if self.is_text:  # texts begin with a start token, or with a prompt
                return False
            others = high[~stuck]
            return self.first.ndim == 2 and bool(others.max() > WIDER * others.min())
        end = 1 if self.first.ndim == 3 and self.first.shape[1] == self.first.shape[2] else END
        return self.first.ndim == 4 or not bool(stuck[:end].all() | stuck[-end:].all())


def _ending(given: dict[str, InputTensor]) -> dict[str, Tensor]:
    """Return for each sequence which rows end in several equal entries."""
    endings: dict[str, Tensor] = {}
    for name, one in given.items():
        if one.kind == "mask" or one.x.ndim not in (2, 3) or one.x.shape[1] <= 2 * END:
            continue
        if one.kind == "numbers" and one.x.ndim == 2:
            continue
        x = one.x.detach().cpu().reshape(len(one.x), one.x.shape[1], -1)
        endings[name] = (x[:, -END:] == x[:, -1:]).flatten(1).all(1) & (x[:, -1] == 0).all(1)
    return endings
