"""Choose the quantisation grid of each row of a weight by the error of the layer's output."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor

from sonde.compress._grid import Symmetry, codes_of, each_entry, grid_of
from sonde.weights import Grid

SHARES = (0.85, 0.7)
"""Parts of the range of a group's entries that narrower grids span."""
Parts = Iterable[tuple[Int[Tensor, "rows"], Float[Tensor, "in in"]]]
Grids = tuple[BFloat16[Tensor, "out group"], BFloat16[Tensor, "out group"]]


def output_grid(
    weight: Float[Tensor, "out in"], grid: Grid, symmetry: Symmetry, parts: Parts
) -> Grids:
    """Return the scale and offset of each group, from the best grid of its row.

    The error of a row is ``e H e^T`` of plain rounding, with ``H`` the second moment of the inputs.
    Tried are, over the whole range: a free offset, a point at 0 and, as a third, no offset
    (``symmetric``: this one alone); then the best of them over narrower ranges.

    Parameters
    ----------
    weight : Float[Tensor, "out in"]
    grid : Grid
    symmetry : {"asymmetric", "symmetric"}
    parts : iterable of (rows, second moment)
        Output rows and second moment of the inputs of each group of the layer.
    """
    moments = list(parts)
    forms = list(_forms(weight, grid, symmetry))
    best, kind, least = forms[0], torch.zeros(len(weight), dtype=torch.int64), None
    for i, form in enumerate(forms):
        errors = _errors(weight, grid, form, moments)
        better = torch.ones_like(errors, dtype=torch.bool) if least is None else errors < least
        least = errors if least is None else torch.where(better, errors, least)
        best, kind = _merged(better, form, best), torch.where(better.cpu(), i, kind)
    assert least is not None  # there is a first form
    for share in SHARES:
        narrow = list(_forms(weight * share, grid, symmetry))
        form = narrow[0]
        for i, other in enumerate(narrow[1:], 1):
            form = _merged((kind == i).to(weight.device), other, form)
        errors = _errors(weight, grid, form, moments)
        better = errors < least
        least = torch.where(better, errors, least)
        best = _merged(better, form, best)
    return best


def _forms(weight: Tensor, grid: Grid, symmetry: Symmetry) -> Iterator[Grids]:
    """Yield the grids over the whole range of each group."""
    if symmetry == "asymmetric":
        yield grid_of(weight, grid, zero="free")
        yield grid_of(weight, grid, zero="point")
    yield grid_of(weight, grid, "symmetric")


def _merged(keep: Tensor, first: Grids, second: Grids) -> Grids:
    """Return the first grid for the kept rows, and the second for all others."""
    scale, offset = (torch.where(keep[:, None], *pair) for pair in zip(first, second, strict=True))
    return scale, offset


def _errors(
    weight: Tensor,
    grid: Grid,
    form: Grids,
    moments: Iterable[tuple[Tensor, Tensor]],
) -> Float[Tensor, "out"]:
    """Return the error of the output of each row."""
    n, half = weight.shape[1], 2 ** (grid.bits - 1)
    scales, offsets = (each_entry(x, grid.group, n) for x in form)
    gap = weight - ((codes_of(weight, scales, offsets, grid.bits) - half) * scales + offsets)
    errors = torch.zeros(len(weight), dtype=gap.dtype, device=gap.device)
    for rows, h in moments:
        error = gap[rows]
        errors[rows] = ((error @ h.to(error)) * error).sum(1)
    return errors
