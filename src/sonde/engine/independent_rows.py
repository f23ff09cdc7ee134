"""Effective sample size of rows that come in groups."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor


def independent_rows(
    sides: Sequence[Float[Tensor, "row _dim"]],
    group: Int[Tensor, "row"],
    n: int,
    n_rows: int | None = None,
) -> float:
    """Return the effective number of rows for a cross covariance of unrelated sides.

    That many independent rows have the same variance: ``n / (1 + (m - 1) r r2)``. Here ``m`` is the
    mean, over rows, of the size of a row's group; ``r`` and ``r2`` are the correlations of two rows
    of one group at each side, from inner products of centred rows.

    Parameters
    ----------
    sides : Float[Tensor, "row dim"] of each side
        Rows, or a sample of them.
    group : Int[Tensor, "row"]
        Group of each row.
    n : int
        Number of rows behind the covariance.
    n_rows : int, optional
        Number of rows in the data if ``sides`` were drawn from them one by one.

    Examples
    --------
    >>> pairs = torch.arange(8) // 2
    >>> x = torch.tensor([1.0, -1.0, 1.0, -1.0])[pairs, None]
    >>> independent_rows((x, x), pairs, 8)
    4.0

    References
    ----------
    kish1965survey
    """
    member = cast(Tensor, torch.unique(group, return_inverse=True)[1])  # pyright: ignore[reportUnknownMemberType]
    drawn, sizes = len(member), torch.bincount(member).double()
    pairs = float((sizes * (sizes - 1)).sum())
    if pairs == 0:
        return float(n)
    each = {id(side): _likeness(side, member, sizes, pairs) for side in sides}  # one may come twice
    shared = math.prod(each[id(side)] for side in sides)
    of_all = (n_rows - 1) / (drawn - 1) if n_rows else 1.0
    return n / (1 + pairs / drawn * max(of_all, 1.0) * shared)


def normal_rows(x: Float[Tensor, "row dim"]) -> float:
    """Return how many normal rows have eigenvalues as uneven as one row of these tails.

    Eigenvalues of a white covariance differ by chance: ``sum (l - 1)^2`` over ``dim`` units is
    ``dim (dim - 2 + k) / n``, with the mean fourth moment ``k`` of standardised units, 3 if normal.

    Examples
    --------
    >>> round(normal_rows(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))), 1)
    1.0
    """
    z = x.detach().double().cpu()
    z = z - z.mean(0)
    variance = z.square().mean(0)
    z = (z / variance.sqrt())[:, variance > 0]
    if z.numel() == 0 or len(z) == 1:
        return 1.0
    n, dim = z.shape
    excess = float(z.pow(4).mean()) * (n + 1) / (n - 1) - 3.0  # 0 on average for normal rows
    excess *= excess**2 / (excess**2 + 24.0 / (n * dim))  # shrunk by its variance if normal
    return (dim + 1) / max(dim + 1 + excess, 1e-9)


def _likeness(side: Tensor, member: Tensor, sizes: Tensor, pairs: float) -> float:
    """Return the correlation of two rows of one group, at least 0."""
    x = side.detach().double().cpu()
    x = x - x.mean(0)
    sums = torch.zeros(len(sizes), x.shape[1], dtype=torch.float64).index_add_(0, member, x)
    own = float(x.square().sum())
    within = (float(sums.square().sum()) - own) / pairs
    return max(0.0, within / (own / len(member))) if own > 0 else 0.0
