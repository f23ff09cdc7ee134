"""Distances between rows in chunks, and nearest neighbours."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.wording import plural

CHUNK = 1024
DIFFERENCES = 1 << 20  # entries of the differences of rows that are formed at once
SPARE, MOST_SPARE = 8, 64  # candidates beyond the neighbours that are wanted, and with the group
UNIT, TINY = 2.0**-24, 2.0**-125  # rounding of float32, and about its smallest normal number
PRODUCTS = 1 << 23  # entries of a product that are looked at at once; half as many cost 9 % more
TILE = 1 << 14  # rows of the bank in it
WAYS = 32


def distance_chunks(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row2 dim"], chunk: int = CHUNK
) -> Iterator[tuple[int, Float[Tensor, "_chunk row2"]]]:
    """Yield each chunk's first row index and its rows' Euclidean distances to all ``y``.

    Both sides are centred at the mean of ``y`` first. Never more than ``chunk`` lines at a time.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows whose distances are computed.
    y : Float[Tensor, "row2 dim"]
        Rows to which the distances are measured.
    chunk : int, default=1024
        Number of rows of ``x`` in each chunk.
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
    each_once: bool = False,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Return distances and indices of the ``k`` nearest rows of ``y``, nearest first.

    The distances of the rows found are recomputed from differences, so that near pairs keep their
    digits. ``nearest(x, x, k, group=g, group2=g)`` leaves out every row of the same group, and with
    ``g = arange`` a row itself; where fewer than ``k`` are left, the distance is infinite.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows whose neighbours are looked for.
    y : Float[Tensor, "row2 dim"]
        Rows among which the neighbours are.
    k : int
        How many.
    group, group2 : Int[Tensor, "row"], optional
        Pairs of one group are left out.
    each_once : bool, default=False
        Only the nearest row of each group of ``y`` is taken; ``k`` is then at most the number of
        groups. Needs ``group2``.
    chunk : int, default=1024
        Number of rows of ``x`` whose distances are held at once.
    """
    if not 1 <= k <= len(y):
        raise InputError(f"nearest: expected k between 1 and {plural(len(y), 'row')}, got {k}.")
    if each_once or x.device.type != "cpu" or len(x) == 0:
        return _by_all_distances(x, y, k, group, group2, each_once, chunk)
    values, index, is_sure = _by_candidates(x, y, k, group, group2)
    rest = torch.nonzero(~is_sure).flatten()
    if len(rest) == 0:
        return values, index
    own = None if group is None else group[rest.to(group.device)]
    far, at = _by_all_distances(x[rest], y, k, own, group2, False, chunk)
    return values.index_copy(0, rest, far), index.index_copy(0, rest, at)


def _by_candidates(
    x: Float[Tensor, "row dim"],
    y: Float[Tensor, "row2 dim"],
    k: int,
    group: Int[Tensor, "row"] | None,
    group2: Int[Tensor, "row2"] | None,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"], Bool[Tensor, "row"]]:
    """Return the nearest candidates, and whether no other row of ``y`` can be nearer.

    Candidates come from products in float32. The product of any other row of ``y`` is at most that
    of the last candidate, up to the rounding of ``dim`` sums.
    """
    n, dim = len(x), x.shape[1]
    spare = SPARE
    if group is not None and group2 is not None:
        spare += int(torch.unique(group2, return_counts=True)[1].max())
    values = x.new_zeros(n, k, dtype=torch.float64)
    index = torch.zeros(n, k, dtype=torch.int64)
    is_sure = torch.zeros(n, dtype=torch.bool)
    if spare > MOST_SPARE or k + spare >= len(y):
        return values, index, is_sure
    mean = y.detach().double().mean(0)
    b = y.detach().double() - mean
    a = b if x is y else x.detach().double() - mean
    scale = max(*(float(bound.abs()) for z in (a, b) for bound in z.aminmax()))
    if not 0 < scale < math.inf:
        return values, index, is_sure
    b = b.div_(scale).float()
    a = b if x is y else a.div_(scale).float()
    long, half = (torch.linalg.vector_norm(z, dim=1, dtype=torch.float64).square() for z in (a, b))
    half = half / 2
    nearest: list[Tensor] = []
    step = max(1, PRODUCTS // len(y))
    for start in range(0, n, step):
        here = slice(start, start + step)
        likely = torch.addmm(-half.float(), a[here], b.T)
        top, at = _largest(likely, k + spare)
        exact = _lengths(x[here], y, at)
        if group is not None and group2 is not None:
            exact = exact.masked_fill(group[here, None] == group2[at], torch.inf)
        near, which = exact.sort(dim=1, stable=True)
        nearest.append(near[:, :k])
        index[here] = at.gather(1, which[:, :k])
        last, length = near[:, k - 1].detach() / scale, long[here].sqrt()
        # A row whose norm is above this is too far whatever its product says.
        most = 1.001 * (length + last)
        error = 4 * (dim + 8) * (UNIT * most * (length + most) + TINY)
        is_sure[here] = last.square() + error < long[here] - 2 * top.amin(1).double()
    return torch.cat(nearest), index, is_sure


def _by_all_distances(
    x: Float[Tensor, "row dim"],
    y: Float[Tensor, "row2 dim"],
    k: int,
    group: Int[Tensor, "row"] | None,
    group2: Int[Tensor, "row2"] | None,
    each_once: bool,
    chunk: int,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Return the nearest rows from all distances in float64."""
    nearest: list[Tensor] = []
    values: list[Tensor] = []
    for start, rough in distance_chunks(x, y, chunk):
        if group is not None and group2 is not None:
            own = group[start : start + chunk, None].to(rough.device)
            rough = rough.masked_fill(own == group2.to(rough.device), torch.inf)
        if each_once and group2 is not None:
            first = _first_of_groups(rough, group2.to(rough.device))
            far, which = rough.gather(1, first).topk(k, largest=False)
            index = first.gather(1, which)
        else:
            far, index = rough.topk(k, largest=False)
        exact = _lengths(x[start : start + chunk], y, index).masked_fill(far.isinf(), torch.inf)
        order = exact.argsort(dim=1, stable=True)
        nearest.append(index.gather(1, order))
        values.append(exact.gather(1, order))
    if not values:
        return x.new_zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.int64)
    return torch.cat(values), torch.cat(nearest)


def _lengths(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row2 dim"], index: Int[Tensor, "row k"]
) -> Float[Tensor, "row k"]:
    """Return each row's distances to the rows of ``y`` at its indices."""
    step = max(1, DIFFERENCES // max(index.shape[1] * x.shape[1], 1))
    return torch.cat(
        [
            torch.linalg.vector_norm(a.double()[:, None] - y[at].double(), dim=2)
            for a, at in zip(x.split(step), index.split(step), strict=True)
        ]
    )


def _first_of_groups(
    rough: Float[Tensor, "row row2"], group: Int[Tensor, "row2"]
) -> Int[Tensor, "row _group"]:
    """Return, for each row and group, the group's nearest row."""
    _, number = torch.unique(group, return_inverse=True)
    shape = len(rough), int(number.max()) + 1
    number = number.expand(len(rough), -1)
    least = rough.new_full(shape, torch.inf).scatter_reduce(1, number, rough, "amin")
    index = torch.arange(rough.shape[1], device=rough.device).expand_as(rough)
    index = index.masked_fill(rough > least.gather(1, number), rough.shape[1])
    first = index.new_full(shape, rough.shape[1])
    return first.scatter_reduce(1, number, index, "amin")


def largest_products(
    x: Float[Tensor, "row dim"], bank: Float[Tensor, "sample dim"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Return each row's ``k`` largest products with a bank, and their indices, descending.

    Products are formed in tiles of one buffer, so that neither many rows nor a large bank need more
    memory.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows that are multiplied with the bank.
    bank : Float[Tensor, "bank dim"]
        Rows of the bank.
    k : int
        Number of products that are kept for each row.
    """
    x = x.detach()
    n, n_bank = x.shape[0], bank.shape[0]
    tile = -(-n_bank // max(1, -(-n_bank // TILE)))
    step = max(1, PRODUCTS // tile)
    buffer = x.new_empty(min(n, step) * tile)
    values = x.new_empty(n, k)
    index = torch.empty(n, k, dtype=torch.int64, device=x.device)
    for first in range(0, n, step):
        part = x[first : first + step]
        best, at = values[:0], index[:0]
        for start in range(0, n_bank, tile):
            rows = bank[start : start + tile]
            shape = part.shape[0], rows.shape[0]
            product = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(part, rows.T, out=product)
            top, where = _largest(product, min(k, shape[1]))
            if start:
                top, where = torch.cat([best, top], 1), torch.cat([at, where + start], 1)
            best, order = top.topk(min(k, top.shape[1]), dim=1)
            at = where.gather(1, order)
        values[first : first + step], index[first : first + step] = best, at
    return values, index


def _largest(
    x: Float[Tensor, "row column"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Return each row's ``k`` largest entries and their columns, unordered.

    Of a wide row only the ``k`` groups of columns with the largest maxima are looked into: an entry
    of any other group has ``k`` larger or equal entries.
    """
    n_groups = x.shape[1] // WAYS
    if n_groups < 4 * k:
        return x.topk(k, dim=1, sorted=False)
    whole = n_groups * WAYS
    groups = x[:, :whole].unflatten(1, (WAYS, n_groups))
    chosen = groups.amax(1).topk(k, dim=1, sorted=False).indices
    inside = groups.gather(2, chosen[:, None].expand(-1, WAYS, -1)).flatten(1)
    steps = torch.arange(0, whole, n_groups, device=x.device)[None, :, None]
    column = (chosen[:, None] + steps).flatten(1)
    if whole < x.shape[1]:
        rest = torch.arange(whole, x.shape[1], device=x.device).expand(len(x), -1)
        inside, column = torch.cat([inside, x[:, whole:]], 1), torch.cat([column, rest], 1)
    top, where = inside.topk(k, dim=1, sorted=False)
    return top, column.gather(1, where)
