"""Scores of an image's patches as a map over its pixels."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError

TRUNCATE = 4.0


def score_map(
    scores: Float[Tensor, "row"],
    grid: Int[Tensor, "row 2"],
    size: tuple[int, int] | None = None,
    sigma: float = 0.0,
) -> Float[Tensor, "line column"]:
    """Return one image's patch scores as a map, bilinear between patch centres.

    A patch that scores ``+inf`` makes infinite every pixel in which the patch has a share.

    Parameters
    ----------
    scores : Float[Tensor, "row"]
        A score for each patch, in any order.
    grid : Int[Tensor, "row 2"]
        Line and column of each patch.
    size : (int, int), optional
        Lines and columns of the map; the grid's own by default. Beyond the outermost centres the
        value of the nearest one holds.
    sigma : float, default=0.0
        Standard deviation in pixels of a Gaussian that smooths the map, mirrored at its edges and
        cut after four of it.

    Raises
    ------
    InputError
        If a patch is missing or there twice, the map is smaller than the grid, or a score is NaN.

    Examples
    --------
    >>> grid = torch.tensor([[0, 0], [0, 1]])
    >>> score_map(torch.tensor([0.0, 1.0]), grid, (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    cells = _cells(scores, grid)
    height, width = cells.shape if size is None else size
    if height < cells.shape[0] or width < cells.shape[1] or not 0 <= sigma < math.inf:
        raise InputError(
            f"score_map: expected a size of at least the grid's {tuple(cells.shape)} and a finite "
            f"sigma of at least 0, got {size} and {sigma}."
        )
    lines = _spread(cells.shape[0], height, sigma)
    columns = _spread(cells.shape[1], width, sigma)
    endless = torch.isinf(cells)
    out = lines @ cells.masked_fill(endless, 0.0) @ columns.T
    if not bool(endless.any()):
        return out
    touched = (lines > 0).double() @ endless.double() @ (columns > 0).double().T
    return out.masked_fill(touched > 0, math.inf)


def _cells(
    scores: Float[Tensor, "row"], grid: Int[Tensor, "row 2"]
) -> Float[Tensor, "line column"]:
    if len(scores) == 0 or len(scores) != len(grid) or bool(scores.isnan().any()):
        raise InputError(
            "score_map: expected a score without NaN and a grid position for at least one "
            f"patch, got {len(scores)} scores ({int(scores.isnan().sum())} NaN) and "
            f"{len(grid)} positions."
        )
    grid = grid.cpu()
    height, width = (int(n) + 1 for n in grid.max(0).values)
    index = grid[:, 0] * width + grid[:, 1]
    distinct = torch.unique(index)
    if bool((grid < 0).any()) or len(distinct) != height * width or len(index) != len(distinct):
        raise InputError(
            f"score_map: expected each patch of a {height} x {width} grid once, got "
            f"{len(index)} patches at {len(distinct)} positions. Pass all patches of one "
            "image."
        )
    cells = torch.empty(height * width, dtype=torch.float64)
    cells[index] = scores.detach().to("cpu", torch.float64)
    return cells.reshape(height, width)


@lru_cache(maxsize=32)
def _spread(n: int, size: int, sigma: float) -> Float[Tensor, "size n"]:
    """Return the weight of each of ``n`` centres in each of ``size`` pixels."""
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * n / size - 0.5).clamp(0, n - 1)
    low = place.floor().long().clamp(max=max(0, n - 2))
    share = place - low
    out = torch.zeros(size, n, dtype=torch.float64)
    pixel = torch.arange(size)
    out[pixel, low] = 1 - share
    if n > 1:
        out[pixel, low + 1] = share
    return out if sigma == 0 else _gaussian(size, sigma) @ out


def _gaussian(size: int, sigma: float) -> Float[Tensor, "size size"]:
    """Return a line of pixels smoothed by a Gaussian, mirrored at the edges."""
    radius = int(TRUNCATE * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-0.5 * (offset.double() / sigma).square())
    source = (torch.arange(size)[:, None] + offset) % (2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)
    out = torch.zeros(size, size, dtype=torch.float64)
    return out.scatter_add_(1, source, (weight / weight.sum()).expand(size, -1))
