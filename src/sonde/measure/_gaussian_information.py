"""Mutual information of Gaussian rows from their moments, and what unrelated rows would give."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.measure._canonical import canonical_correlations
from sonde.stats import CrossMoments, CrossMomentsState, Moments, MomentsState
from sonde.stats.sampled_rows import SampledRows

ROUNDING = 1e-12


def gaussian_information(
    cross: CrossMomentsState, x: MomentsState, y: MomentsState, independent: float | None = None
) -> tuple[Float[Tensor, ""], float]:
    """Return ``-1/2 sum ln(1 - rho^2)`` in nats and its mean over unrelated Gaussian rows.

    Differentiable in the moments. Infinite if a correlation is 1 to rounding. Both are NaN if there
    are no more rows than varying directions of both sites: some correlation is then always 1.
    """
    found = canonical_correlations(cross, x, y)
    null = gaussian_null(independent or cross.n, *found.ranks)
    square = found.rho.square()
    value = -0.5 * torch.log1p(-square).sum()
    if bool((square.detach() > 1.0 - ROUNDING).any()):
        value = torch.full_like(value.detach(), math.inf)
    return (value, null) if math.isfinite(null) else (value * math.nan, null)


def gaussian_null(n: float, dim: int, dim2: int) -> float:
    """Return the exact mean estimate from ``n`` unrelated Gaussian rows; NaN with too few rows."""
    if n <= dim + dim2:
        return math.nan
    half = 0.5 * (n - torch.arange(1, dim + dim2 + 1, dtype=torch.float64))
    terms = torch.special.digamma(half)
    return 0.5 * float(terms[:dim].sum() + terms[:dim2].sum() - terms.sum())


def information_of_rows(rows: SampledRows) -> tuple[Float[Tensor, ""], float]:
    """Return the information of two sites whose rows are taken as Gaussian, and its null."""
    each = (Moments().observe(rows.rows[0]), Moments().observe(rows.rows[1]))
    return gaussian_information(CrossMoments().observe(*rows.rows), *each)


def normal_scores(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Return the normal quantile of ``rank / (n + 1)`` of each unit; equal values share a rank."""
    columns = x.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    upto = torch.searchsorted(ordered, columns, right=True)
    rank = 0.5 * (below + upto + 1).T.double()
    return torch.special.ndtri(rank / (len(x) + 1))
