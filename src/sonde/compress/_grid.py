"""Quantisation grid of a weight: a scale and an offset for each group of a row."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor
from torch.nn import functional

from sonde.compress._layers import Weighted
from sonde.core.errors import InputError
from sonde.weights import Grid, Quantised, pack
from sonde.weights.packing import packed_length

Symmetry = Literal["symmetric", "asymmetric"]
Zero = Literal["point", "free"]
SMALLEST = 2.0**-100
"""Below this a group counts as zero: its scale would not be a normal number."""
BLOCK = 2**18
"""Entries of a matrix that are rounded together."""


def check_grid(owner: str, bits: int | None, group: int) -> None:
    """Raise if ``bits`` or ``group`` is out of range.

    Raises
    ------
    InputError
        Naming the parameter.
    """
    if bits is not None and (bits != int(bits) or not 1 < bits <= 8):
        raise InputError(f"{owner}: expected whole bits from 2 to 8, or None, got {bits}.")
    if group < 0:
        raise InputError(
            f"{owner}: expected a group of 1 entry or more, or 0 for whole rows, got {group}."
        )


def grid_of(
    weight: Float[Tensor, "out in"],
    grid: Grid,
    symmetry: Symmetry = "asymmetric",
    zero: Zero = "free",
) -> tuple[BFloat16[Tensor, "out group"], BFloat16[Tensor, "out group"]]:
    """Return the scale and offset of each group, rounded to bfloat16 for storage.

    An asymmetric grid spans the smallest to the largest entry and 0. Compute codes with these
    rounded scales and offsets. With the zero ``point`` 0 is a point of the grid, so that small
    weights have no common error.
    """
    levels, half = 2**grid.bits - 1, 2 ** (grid.bits - 1)
    low, high = (_each_group(weight, grid.group, how) for how in ("low", "high"))
    if symmetry == "symmetric":
        scale = torch.maximum(low.abs(), high.abs()) / (half - 1 or 1)
        offset = torch.zeros_like(scale)
    else:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = (high - low) / levels
        offset = low + half * scale
        if zero == "point":
            step = scale.clamp(min=SMALLEST).bfloat16().to(scale)
            offset = (half - (-low / step).round().clamp(0, levels)) * step
    empty = scale < SMALLEST
    scale = scale.masked_fill(empty, 1.0).bfloat16()
    return scale, offset.masked_fill(empty, 0.0).bfloat16()


def clipped_grid(
    weight: Float[Tensor, "out in"],
    grid: Grid,
    symmetry: Symmetry = "asymmetric",
    squares: Float[Tensor, "in"] | None = None,
) -> tuple[BFloat16[Tensor, "out group"], BFloat16[Tensor, "out group"]]:
    """Return the scale and offset of each group's best of 21 grids, by least squared error.

    The grids span 1 to 0.5 of the group's range; entries outside go to the end of the grid.
    ``squares`` weights the error of each entry, by the mean square of its input.
    """
    best = grid_of(weight, grid, symmetry)
    least = _squared_errors(weight, grid, *best, squares)
    for share in torch.linspace(1, 0.5, 21, dtype=torch.float64)[1:].tolist():
        tried = grid_of(weight * share, grid, symmetry)
        errors = _squared_errors(weight, grid, *tried, squares)
        better = errors < least
        least = torch.where(better, errors, least)
        best = tuple(torch.where(better, *pair) for pair in zip(tried, best, strict=True))
    return best[0], best[1]


def _squared_errors(
    weight: Tensor, grid: Grid, scale: Tensor, offset: Tensor, squares: Tensor | None
) -> Tensor:
    n, half = weight.shape[1], 2 ** (grid.bits - 1)
    scales, offsets = (each_entry(x, grid.group, n) for x in (scale, offset))
    values = (codes_of(weight, scales, offsets, grid.bits) - half) * scales + offsets
    errors = (weight - values).square()
    errors = errors if squares is None else errors * squares.to(errors)
    wide = functional.pad(errors, (0, -n % grid.group))
    return wide.unflatten(1, (-1, grid.group)).sum(2)


def _each_group(weight: Tensor, group: int, how: str) -> Tensor:
    fill = float("inf") if how == "low" else -float("inf")
    wide = functional.pad(weight, (0, -weight.shape[1] % group), value=fill)
    parts = wide.unflatten(1, (-1, group))
    return parts.amin(2) if how == "low" else parts.amax(2)


def codes_of(
    weight: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*shape"],
    offset: Float[Tensor, "*shape"],
    bits: int,
) -> Float[Tensor, "*shape"]:
    """Return the nearest integer code of each entry, for the entry's scale and offset."""
    half = 2 ** (bits - 1)
    return ((weight - offset) / scale + half).round().clamp(0, 2**bits - 1)


def each_entry(x: BFloat16[Tensor, "out group"], group: int, n: int) -> Float[Tensor, "out in"]:
    """Return the value of its group for each entry of a row, in float64."""
    return x.double().repeat_interleave(group, 1)[:, :n]


def rounded(
    weight: Float[Tensor, "out in"],
    grid: Grid,
    symmetry: Symmetry,
    clip: str | None = None,
    layer: Weighted | None = None,
) -> Quantised:
    """Return a matrix with each entry rounded to the nearest point of its group's grid.

    A block of rows is converted to float64 at a time: an output layer of a language model would
    else hold several times the bytes of the whole model.
    """
    make = grid_of if clip is None else clipped_grid
    n_out, n = weight.shape
    codes = weight.new_empty(n_out, packed_length(n, grid.bits), dtype=torch.uint8)
    scale = weight.new_empty(n_out, grid.n_groups(n), dtype=torch.bfloat16)
    whole = Quantised(
        codes, scale, scale.clone(), grid, n, turned=layer is not None and layer.turned
    )
    step = max(1, BLOCK // max(1, n))
    for start in range(0, n_out, step):
        rows = weight[start : start + step].double()
        part = rounded_to(rows, grid, make(rows, grid, symmetry))
        for name in ("codes", "scale", "offset"):
            getattr(whole, name)[start : start + step] = getattr(part, name)
    return whole


def rounded_to(
    weight: Float[Tensor, "out in"],
    grid: Grid,
    values: tuple[BFloat16[Tensor, "out group"], BFloat16[Tensor, "out group"]],
    layer: Weighted | None = None,
) -> Quantised:
    """Return a matrix rounded to the grids of a given scale and offset of each group."""
    scale, offset = values
    n = weight.shape[1]
    scales, offsets = (each_entry(x, grid.group, n) for x in (scale, offset))
    return quantised(codes_of(weight, scales, offsets, grid.bits), scale, offset, grid, layer)


def quantised(
    codes: Tensor, scale: Tensor, offset: Tensor, grid: Grid, layer: Weighted | None = None
) -> Quantised:
    """Return the change that sets a layer's weight, or a matrix, to these codes."""
    packed, turned = pack(codes.to(torch.uint8), grid.bits), layer is not None and layer.turned
    return Quantised(packed, scale, offset, grid, codes.shape[1], turned=turned)


def method_of(owner: str, parameters: Mapping[str, object]) -> str:
    """Return the name of a method with its parameters, in the form that patches store."""
    return f"{owner}({', '.join(f'{name}={value!r}' for name, value in parameters.items())})"
