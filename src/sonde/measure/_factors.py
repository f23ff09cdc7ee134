"""Latents compared with known factors: symbols, information, nulls, and charts.

The latents are the first site of a pair and the factors the second, one unit for each factor.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.chart import Chart, cells, matrix
from sonde.core.errors import InputError
from sonde.measure._flags import moment_flags
from sonde.stats import HashSampleState, MomentsState
from sonde.stats.joint_counts import as_symbols, entropy_nats, information_nats, joint_counts
from sonde.stats.sampled_rows import SampledRows

N_BINS = 20
DRAWS = 200


@dataclass(frozen=True)
class FactorSymbols:
    """Sampled latents and factors, with each value replaced by its bin, and flags."""

    rows: SampledRows
    flags: tuple[str, ...]

    @classmethod
    def of(cls, owner: str, samples: Sequence[HashSampleState], n_bins: int) -> "FactorSymbols":
        """Return the symbols of the rows that both sites have.

        Raises
        ------
        InputError
            If there are fewer than two latents, or no row.
        """
        rows = SampledRows.of(samples)
        check_latents(owner, rows.rows[0].shape[1])
        if len(rows) == 0:
            raise InputError(f"{owner}: expected rows that both sites have, got none.")
        latents, factors = (as_symbols(x, n_bins).cpu() for x in rows.rows)
        flags = [*rows.flags]
        if bool((factors == factors[0]).all(0).any()):
            flags.append("dead")
        if rows.n_groups < 10 * n_bins:
            flags.append("few_rows")
        return cls(replace(rows, rows=(latents.double(), factors.double())), tuple(flags))

    def errors(
        self, figure: Callable[[SampledRows], Tensor]
    ) -> tuple[Tensor | None, str, Float[Tensor, "*figure"]]:
        """Return a measure's standard error, its method, and the mean over shuffles."""
        se, how = self.rows.standard_error(figure)
        null = torch.stack([figure(rows) for rows in self.rows.shuffled()]).mean(0)
        return se, how, null


def information(rows: SampledRows) -> tuple[Float[Tensor, "factor latent"], Float[Tensor, "_f"]]:
    """Return each latent's information on each factor, and the factors' entropies, in nats."""
    latents, factors = (symbols.long() for symbols in rows.rows)
    counts = [joint_counts(latents, factor) for factor in factors.T]
    entropy = torch.stack([entropy_nats(table[0].sum(0)) for table in counts])
    return torch.stack([information_nats(table) for table in counts]), entropy


def normalised(rows: SampledRows) -> Float[Tensor, "factor latent"]:
    """Return mutual information divided by each factor's entropy; NaN for constant factors."""
    shared, entropy = information(rows)
    return shared / torch.where(entropy > 0, entropy, math.nan)[:, None]


def largest_gap(scores: Float[Tensor, "factor latent"]) -> Float[Tensor, "factor"]:
    """Return each factor's gap between its best and second-best latent."""
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def check_latents(owner: str, n_latents: int) -> None:
    """Raise if there are fewer than two latents to compare."""
    if n_latents < 2:
        raise InputError(
            f"{owner}: expected at least two latents, got {n_latents}. "
            "The latents are the first site, the factors the second."
        )


def check_factors(owner: str, n_factors: int) -> None:
    """Raise if there are fewer than two factors to compare."""
    if n_factors < 2:
        raise InputError(
            f"{owner}: expected at least two factors, got {n_factors}. "
            "The latents are the first site, the factors the second."
        )


def factor_flags(latents: MomentsState, factors: MomentsState) -> tuple[str, ...]:
    """Return the flags of the latents, and ``dead`` if a factor is constant."""
    flags = moment_flags(latents)
    lacking = bool((factors.variance.detach() <= 0).any()) and "dead" not in flags
    return (*flags, "dead") if lacking else flags


def unrelated(
    latents: MomentsState, factors: MomentsState, n_draws: int = DRAWS, seed: int = 0
) -> Float[Tensor, "draw latent factor"]:
    """Return random samples proportional to correlations of unrelated latents and factors.

    Each side keeps the correlations among its own units. An entry of 1 stands for a correlation of
    ``1 / sqrt(n - 1)``.
    """
    generator = torch.Generator().manual_seed(seed)
    roots = [_root(m) for m in (latents, factors)]
    shape = (n_draws, len(roots[0]), len(roots[1]))
    return roots[0] @ torch.randn(shape, generator=generator, dtype=torch.float64) @ roots[1]


def unit_correlations(
    scatter: Float[Tensor, "dim dim2"], x: MomentsState, y: MomentsState
) -> Tensor:
    """Return the correlations of units with this cross scatter; 0 for constant units."""
    sizes = []
    for m in (x, y):
        square = m.variance * m.n
        live = square > 0
        sizes.append(torch.where(live, torch.where(live, square, 1.0).rsqrt(), 0.0))
    return sizes[0][:, None] * scatter * sizes[1]


def _root(moments: MomentsState) -> Float[Tensor, "dim dim"]:
    scatter = moments.scatter.detach()
    values, vectors = torch.linalg.eigh(unit_correlations(scatter, moments, moments).detach())
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def table_chart(title: str, name: str, table: Float[Tensor, "factor latent"]) -> Chart:
    """Return a heat map of the latents and factors."""
    return matrix(title, cells(table.tolist(), "latent", "factor", name), "latent", "factor", name)
