"""Canonical correlations of two sites from their moments, and their null for unrelated sites."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.stats import CrossMomentsState, MomentsState
from sonde.stats.normal_equations import GRAM_CUT

"""Part of the largest eigenvalue (standardised units) below which a direction is ignored."""
DRAWS = 20
ENTRIES = 2000
"""Draws of a null are fewer where one has so many entries that it hardly varies."""


@dataclass(frozen=True)
class Canonical:
    """Canonical correlations, descending, and each side's maps to its canonical variables.

    ``x @ left[:, a]`` and ``y @ right[:, a]`` have unit scatter and correlate by ``rho[a]``.
    ``main`` are the maps of ``left`` that have a correlation, differentiable in the moments.
    """

    rho: Float[Tensor, "pair"]
    left: Float[Tensor, "dim rank"]
    right: Float[Tensor, "dim2 rank2"]
    main: Float[Tensor, "dim pair"]

    @property
    def ranks(self) -> tuple[int, int]:
        """Number of each side's directions that vary or were kept."""
        return self.left.shape[1], self.right.shape[1]


def canonical_correlations(
    cross: CrossMomentsState, x: MomentsState, y: MomentsState, keep: float | None = None
) -> Canonical:
    """Return the canonical correlations of two sites.

    Correlations are differentiable in the moments; which directions vary is taken as fixed.

    Parameters
    ----------
    keep : float, optional
        Share of each side's variance that the kept directions hold; the widest are kept first.
    """
    one = _whitener(x.scatter, keep)
    two = _whitener(y.scatter, keep)
    middle = one.T @ cross.cross @ two
    u, _, vh = torch.linalg.svd(middle.detach())
    main = one @ _turning(middle, cross.n**-0.5)
    return Canonical(torch.linalg.svdvals(middle), one.detach() @ u, two.detach() @ vh.T, main)


def _turning(middle: Float[Tensor, "rank rank2"], noise: float) -> Float[Tensor, "rank pair"]:
    """Return the left singular vectors, with a bounded derivative for close singular values.

    Vectors of two squared values that differ by ``gap`` turn into each other at the rate ``1 /
    gap``. Rows cannot tell values apart that differ by less than their ``noise``: the rate is ``gap
    / (gap^2 + noise^2)``, so that the angle stays bounded.
    """
    u, s, vh = torch.linalg.svd(middle.detach(), full_matrices=False)
    change = u.T @ (middle - middle.detach()) @ vh.T * s
    gap = s.square() - s.square()[:, None]
    turned = u @ ((change + change.T) * gap / (gap.square() + noise**2))
    outside = (middle - middle.detach()) @ vh.T - u @ (u.T @ (middle - middle.detach()) @ vh.T)
    return u + turned + outside * s / (s.square() + noise**2)


def _whitener(scatter: Float[Tensor, "dim dim"], keep: float | None) -> Float[Tensor, "dim _rank"]:
    """Return ``W`` with ``W^T scatter W = 1`` on the directions that vary."""
    fixed = scatter.detach()
    live = fixed.diagonal() > 0
    scale = torch.where(live, fixed.diagonal(), 1.0).rsqrt()
    if keep is not None:  # variance has a meaning only in the units' own scale
        scale = torch.ones_like(scale)
    values, vectors = torch.linalg.eigh(fixed * scale[:, None] * scale)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > GRAM_CUT * values[:1].clamp(min=0)
    if keep is not None:
        share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
        kept &= torch.arange(len(values)) <= int((share < keep - 1e-12).sum())
    basis = scale[:, None] * vectors[:, kept] * values[kept].rsqrt()
    inner = basis.T @ scatter @ basis
    factor = torch.linalg.cholesky((inner + inner.T) / 2)
    return torch.linalg.solve_triangular(factor, basis.T, upper=False).T


def null_correlations(n: int, dim: int, dim2: int) -> float:
    """Return the mean canonical correlation of ``n`` unrelated Gaussian rows, by simulation.

    Only the three numbers matter: unrelated rows span two random subspaces of a space of ``n - 1``
    dimensions. The draws use a Wishart matrix and its Bartlett factor.
    """
    least, most = sorted((dim, dim2))
    if n - 1 <= most:
        return 1.0
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    draws = null_draws(least * most)
    for _ in range(draws):
        inside = torch.randn(most, least, generator=generator, dtype=torch.float64)
        rest = wishart(n - 1 - most, least, generator)
        own = inside.T @ inside
        root = torch.linalg.cholesky(own + rest)
        half = torch.linalg.solve_triangular(root, inside.T, upper=False)
        total += float(torch.linalg.svdvals(half).mean())
    return total / draws


def null_nuclear(x: MomentsState, y: MomentsState) -> float:
    """Return the nuclear norm of the cross scatter of unrelated rows with these covariances."""
    a, b = (m.eigenvalues.detach().clamp(min=0).sqrt() for m in (x, y))
    generator = torch.Generator().manual_seed(0)
    draws = null_draws(len(a) * len(b))
    total = 0.0
    for _ in range(draws):
        noise = torch.randn(len(a), len(b), generator=generator, dtype=torch.float64)
        total += float(torch.linalg.svdvals(a[:, None].cpu() * noise * b.cpu()).sum())
    return total / draws * max(x.n - 1, 0) ** 0.5


def null_draws(entries: int) -> int:
    """Return the number of simulations of a null matrix of ``entries``; fewer if it is large."""
    return max(1, min(DRAWS, DRAWS * ENTRIES // max(entries, 1)))


def wishart(freedom: int, dim: int, generator: torch.Generator) -> Float[Tensor, "dim dim"]:
    """Return a random scatter of ``freedom`` white rows, without sampling rows if they are many."""
    if freedom < 2 * dim:
        rows = torch.randn(freedom, dim, generator=generator, dtype=torch.float64)
        return rows.T @ rows
    lower = torch.randn(dim, dim, generator=generator, dtype=torch.float64).tril(-1)
    freedoms = freedom - torch.arange(dim, dtype=torch.float64)
    # Wilson and Hilferty: a chi-square of many degrees of freedom is nearly a cubed normal
    z = torch.randn(dim, generator=generator, dtype=torch.float64)
    chi = freedoms * (1 - 2 / (9 * freedoms) + z * (2 / (9 * freedoms)).sqrt()) ** 3
    lower += torch.diag(chi.sqrt())
    return lower @ lower.T
