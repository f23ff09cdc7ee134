"""Test for finite rows: rows without NaN or infinity, and small enough to square.

A float32 row of length 1e20 is made of finite numbers, but its square, and with it every distance,
covariance and unit vector, is infinite. So a number beyond ``largest`` counts as infinite too; see
``docs/decisions/finite-rows.md``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core._kinds import is_dict, is_list, is_tuple


def largest(dtype: torch.dtype) -> float:
    """Return the largest absolute value of a finite entry: 1e60 in float64, else 1e15.

    Half-precision rows are widened to float32 before anything is computed. In float32 the squares
    of 1e15 in 4,096 rows of 65,536 units still have a finite sum; in float64 so have the fourth
    powers of 1e60.
    """
    return 1e60 if dtype == torch.float64 else min(1e15, torch.finfo(dtype).max)


def finite_entries(x: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Return a mask of the finite entries.

    Examples
    --------
    >>> finite_entries(torch.tensor([1e14, 1e16, torch.nan])).tolist()
    [True, False, False]
    """
    return x.abs() <= largest(x.dtype)


def finite_rows(x: Float[Tensor, "row dim"]) -> Bool[Tensor, "row"]:
    """Return a mask of the rows with only finite entries."""
    return finite_entries(x).all(dim=1)


def is_finite(x: Tensor) -> bool:
    """Return whether every entry is finite; if so, this costs a single norm."""
    return all_finite([x])[0]


def all_finite(rows: Sequence[Tensor]) -> list[bool]:
    """Return, for each tensor, whether every entry is finite.

    Their norms are fetched together, with one synchronisation for each device.
    """
    lengths = fetched([_length(x) for x in rows])
    return [
        length <= 0.5 * largest(x.dtype) or bool(finite_entries(x).all())
        for length, x in zip(lengths, rows, strict=True)
    ]


def fetched(numbers: Sequence[Tensor]) -> list[float]:
    """Return scalar tensors of any devices as floats, with one synchronisation per device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, number in enumerate(numbers):
        by_device.setdefault(number.device, []).append(i)
    floats = [math.nan] * len(numbers)
    for device, places in by_device.items():
        if device.type == "cpu":
            values = [numbers[i] for i in places]
        else:
            values = torch.stack([numbers[i].float() for i in places]).cpu()
        for i, value in zip(places, values, strict=True):
            floats[i] = float(value)
    return floats


def _length(x: Tensor) -> Float[Tensor, ""]:
    # Naming a type copies the rows into it. bfloat16 has the range of float32: its sums need none.
    wide = torch.float32 if x.dtype == torch.float16 else None
    return torch.linalg.vector_norm(x.detach(), dtype=wide)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def finite_json(value: Any) -> Any:
    """Return JSON values with None in place of numbers that are not finite.

    Examples
    --------
    >>> finite_json({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dict(value):
        return {key: finite_json(item) for key, item in value.items()}
    return [finite_json(item) for item in value] if is_list(value) or is_tuple(value) else value
