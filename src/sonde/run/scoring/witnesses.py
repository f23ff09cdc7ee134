"""Witnesses: slightly changed copies of an example, so that more bits are compared.

An example of few values, such as a vector of eight states, often has the same bits in two kernels
by chance. Use these where bits are compared; they are no data.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.inputs import InputBatch

MOST, VALUES, STEP = 32, 2048, 64
"""Witnesses at most; values that are compared over all of them; 1 / largest relative change."""


def n_witnesses(n_values: int, most: int) -> int:
    """Return the number of witnesses with enough values to compare, at least two."""
    return min(most, MOST, max(2, -(-VALUES // max(n_values, 1))))


def varied_inputs(made: InputBatch, numbers: Sequence[int]) -> InputBatch:
    """Return a batch of copies with slightly changed floats or rotated tokens.

    Parameters
    ----------
    made : InputBatch
        Copies of one example.
    numbers : sequence of int
        Number of the witness that each copy becomes; 0 is the example itself.
    """
    plain = not made.packed and made.placeholder is None and made.segment is None
    length = None if made.length is None or not plain else int(made.length[0])
    return replace(
        made,
        args=tuple(_varied_input("", x, numbers, length) for x in made.args),
        kwargs={name: _varied_input(name, x, numbers, length) for name, x in made.kwargs.items()},
    )


def _varied_input(name: str, x: Any, numbers: Sequence[int], length: int | None) -> Any:
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != len(numbers) or "mask" in name:
        return x
    if x.is_floating_point():
        return _varied(x, numbers)
    if length is None or x.ndim != 2 or x.shape[1] != length or x.dtype == torch.bool:
        return x
    return torch.stack([row.roll(number) for row, number in zip(x, numbers, strict=True)])


def varied_rows(batch: Batch, numbers: Sequence[int]) -> Batch:
    """Return a batch of copies with slightly changed rows and, if present, logits."""
    rows = {
        key: _varied(x, torch.as_tensor(numbers)[batch.example[key].cpu()].tolist())
        for key, x in batch.rows.items()
    }
    logits = None if batch.logits is None else _varied(batch.logits, numbers)
    return replace(batch, rows=rows, logits=logits)


def _varied(x: Tensor, numbers: Sequence[int]) -> Tensor:
    """Scale each row down by its witness's noise; zeros become noise.

    Signs and ranges stay: a model may refuse a probability above 1.
    """
    if not any(numbers) or not x.is_floating_point():
        return x
    noise = torch.rand(MOST, *x.shape[1:], generator=torch.Generator().manual_seed(0)) / STEP
    noise[0] = 0
    noise_here = noise[torch.as_tensor(numbers)].to(x)
    return torch.where(x == 0, noise_here, x * (1 - noise_here))
