"""Spectrum of white noise's covariance, the reference for a spectrum without structure.

The eigenvalues of the covariance of ``n`` white rows are not all equal. In the limit of many
dimensions they follow the Marchenko-Pastur law, whose averages are one-dimensional integrals.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_POINTS = 512
TRACY_WIDOM = -1.2065335745820


def white_eigenvalues(
    dim: int, n: int
) -> tuple[int, Float[Tensor, "point"], Float[Tensor, "point"]]:
    """Return the rank of ``n`` white rows' covariance, and its spectrum's nodes and weights.

    The mean of ``f`` over the non-zero eigenvalues is ``(weights * f(nodes)).sum()``; their mean is
    ``dim / rank``.

    Parameters
    ----------
    dim : int
        Number of units of a row.
    n : int
        Number of rows.

    References
    ----------
    marchenko1967
    """
    rank = min(dim, n)
    ratio = rank / max(dim, n)
    theta = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) * (math.pi / _POINTS)
    nodes = 1.0 + ratio + 2.0 * math.sqrt(ratio) * torch.cos(theta)
    weights = 2.0 * torch.sin(theta).square() / nodes / _POINTS
    return rank, nodes * (dim / rank), weights


def white_largest(dim: int, n: int) -> float:
    """Return the expected largest eigenvalue of the covariance of ``n`` white rows.

    The largest eigenvalue follows the law of Tracy and Widom, whose mean is -1.2065.

    References
    ----------
    johnstone2001distribution
    """
    if dim == 1 or n == 1:
        return float(max(dim, n)) / n
    long, short = math.sqrt(max(dim, n) - 1), math.sqrt(min(dim, n))
    scale = (long + short) * (1 / long + 1 / short) ** (1 / 3)
    return ((long + short) ** 2 + TRACY_WIDOM * scale) / n


def white_mean(
    function: Callable[[Float[Tensor, "point"]], Float[Tensor, "point"]], dim: int, n: int
) -> tuple[int, float]:
    """Return white rows' rank and the mean of ``function`` over nonzero eigenvalues.

    Parameters
    ----------
    function : callable
        Function of the eigenvalues, applied to a tensor of them.
    dim : int
        Number of units of a row.
    n : int
        Number of rows.
    """
    rank, nodes, weights = white_eigenvalues(dim, n)
    return rank, float((weights * function(nodes)).sum())
