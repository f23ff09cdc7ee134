"""Distances between rows in chunks, and the nearest ones."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError

CHUNK = 1024


def distance_chunks(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row2 dim"], chunk: int = CHUNK
) -> Iterator[tuple[int, Float[Tensor, "_chunk row2"]]]:
    """Yield each chunk's first row index and the Euclidean distances of its rows to all ``y``.

    Both sides are centred at the mean of ``y`` first. Never more than ``chunk`` lines at a time.
    """
    mean = y.double().mean(0) if len(y) else y.double().sum(0)
    x, y = x.double() - mean, y.double() - mean
    square = y.square().sum(1)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        squares = part.square().sum(1)[:, None] + square - 2 * (part @ y.T)
        yield start, squares.clamp_(min=0).sqrt_()


def nearest(
    x: Float[Tensor, "row dim"],
    y: Float[Tensor, "row2 dim"],
    k: int,
    *,
    group: Int[Tensor, "row"] | None = None,
    group2: Int[Tensor, "row2"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Return distances and indices of the ``k`` nearest rows of ``y``, nearest first.

    Distances of the ones found are computed anew from differences, so that near pairs keep their
    digits. ``nearest(x, x, k, group=g, group2=g)`` leaves out every row of the same group, and with
    ``g = arange`` a row itself; where fewer than ``k`` are left, the distance is infinite.

    Parameters
    ----------
    k : int
        How many.
    group, group2 : Int[Tensor, "row"], optional
        Pairs of one group are left out.
    """
    if not 1 <= k <= len(y):
        raise InputError(f"nearest: expected k between 1 and {len(y)} rows, got {k}.")
    found: list[Tensor] = []
    values: list[Tensor] = []
    for start, rough in distance_chunks(x, y, chunk):
        if group is not None and group2 is not None:
            own = group[start : start + chunk, None].to(rough.device)
            rough = rough.masked_fill(own == group2.to(rough.device), torch.inf)
        far, index = rough.topk(k, largest=False)
        part = x[start : start + chunk].double()
        exact = torch.linalg.vector_norm(part[:, None] - y[index].double(), dim=2)
        exact = exact.masked_fill(torch.isinf(far), torch.inf)
        order = exact.argsort(dim=1, stable=True)
        found.append(index.gather(1, order))
        values.append(exact.gather(1, order))
    if not values:
        return x.new_zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.int64)
    return torch.cat(values), torch.cat(found)
