"""Test whether each latent has information about only one known factor.

The latents are the first site and the factors the second, one unit for each factor.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._factors import N_BINS, FactorSymbols, check_factors, information, table_chart
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState


@final
@dataclass(frozen=True, kw_only=True)
class ModularityResult(Result):
    """Mean over latents; ``scores`` holds each one's value (NaN: no information).

    ``information`` is the mutual information of each latent with each factor, in nats.
    """

    title: ClassVar[str] = "Mutual information of latents and factors"
    direction: Direction = "higher"
    scores: Float[Tensor, "latent"]
    information: Float[Tensor, "factor latent"]

    def chart(self) -> dict[str, Any]:
        """Return a chart with a heat map of the information."""
        return table_chart(self.title, "information", self.information)


@final
@dataclass(frozen=True)
class Modularity(PairSampleInstrument):
    """Degree to which each latent has information about a single factor, averaged over latents.

    ``1 - sum_f (I_jf - t_jf)^2 / (theta_j^2 (factors - 1))`` for latent ``j``: ``theta_j`` is its
    largest mutual information with a factor; ``t_jf`` is ``theta_j`` at that factor, 0 elsewhere.

    Range        [0, 1]; higher = more modular. Invariant to  permutation, increasing maps of each
                 latent (shift, scale).
    Cost         one pass; state ``m`` rows; result O(m latents factors), 40 times for error, null.
    Assumes      a latent that knows nothing still has a little information by chance, about evenly
                 with all factors: compare with the null. Constant latents are left out.
    Differs      from the paper: bins of equal numbers of rows, not of equal width.

    Parameters
    ----------
    n_bins : int, default=20
        Bins of about equal numbers of rows for a latent or factor with more values than that.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    >>> round(modularity(factors.flip(1), factors).value, 6)
    1.0

    References
    ----------
    ridgeway2018learning
    """

    n_bins: int = N_BINS
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "ridgeway2018learning"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"n_bins": 4, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, n_bins=">= 2")

    def result(self, samples: tuple[HashSampleState, HashSampleState]) -> ModularityResult:
        """Compare each latent with an ideal latent of its best factor."""
        symbols = FactorSymbols.of("Modularity", samples, self.n_bins)
        table, _ = information(symbols.rows)
        check_factors("Modularity", len(table))
        scores = of_latents(table)
        se, how, null = symbols.errors(lambda rows: of_latents(information(rows)[0]).nanmean())
        flags = symbols.flags
        if bool(scores.isnan().all()) and "dead" not in flags:
            flags = (*flags, "dead")
        return ModularityResult(
            value=float(scores.nanmean()),
            se=se,
            null=null,
            n=len(symbols.rows),
            range=(0.0, 1.0),
            flags=flags,
            conventions={"bins": f"{self.n_bins} of equal numbers of rows", "se": how},
            scores=scores,
            information=table,
        )


def of_latents(table: Float[Tensor, "factor latent"]) -> Float[Tensor, "latent"]:
    """Return the score of each latent; NaN if it has no information about any factor."""
    best = table.amax(0)
    has_information = best > 1e-12  # what rounding leaves of no information
    rest = table.square().sum(0) - best.square()
    score = 1.0 - rest / (torch.where(has_information, best, 1.0).square() * (len(table) - 1))
    return torch.where(has_information, score, math.nan)


modularity = as_function(Modularity)
