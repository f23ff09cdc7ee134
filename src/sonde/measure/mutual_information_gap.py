"""Mutual information gap: each factor's best latent compared with its second best.

The latents are the first site and the factors the second, one unit for each factor.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._factors import N_BINS, FactorSymbols, largest_gap, normalised, table_chart
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState


@final
@dataclass(frozen=True, kw_only=True)
class MutualInformationGapResult(Result):
    """Mean gap; ``gap`` and ``best`` hold each factor's gap and best latent.

    ``information`` is the share of a factor's entropy that a latent knows.
    """

    title: ClassVar[str] = "Mutual information of latents and factors"
    direction: Direction = "higher"
    gap: Float[Tensor, "factor"]
    best: Int[Tensor, "factor"]
    information: Float[Tensor, "factor latent"]

    def chart(self) -> dict[str, Any]:
        """Return a chart with a heat map of the information."""
        return table_chart(self.title, "information", self.information)


@final
@dataclass(frozen=True)
class MutualInformationGap(PairSampleInstrument):
    """Mean gap over factors between the two most informative latents (MIG).

    ``mean_f (I_1 - I_2) / H(v_f)``, where ``I_1`` and ``I_2`` are the most and the second most
    mutual information that a latent has with factor ``f``. It is 1 where one latent alone knows
    each factor; two copies of a latent give 0.

    Range        [0, 1]; higher = better disentangled. Invariant to  permutation, increasing maps of
                 each latent (shift, scale).
    Cost         one pass; state ``m`` rows; result O(m latents factors), 40 times for error, null.
    Assumes      factors with few values, else they are cut into bins as latents are. Constant
                 factors are left out of the mean (flag ``dead``).
    Differs      from the paper: bins of equal numbers of rows in place of an encoder's density.

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
    >>> mutual_information_gap(factors.flip(1), factors).value
    1.0

    References
    ----------
    chen2018isolating
    """

    n_bins: int = N_BINS
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "chen2018isolating"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"n_bins": 4, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, n_bins=">= 2")

    def result(
        self, samples: tuple[HashSampleState, HashSampleState]
    ) -> MutualInformationGapResult:
        """Compare each factor's two best latents."""
        symbols = FactorSymbols.of("MutualInformationGap", samples, self.n_bins)
        table = normalised(symbols.rows)
        gap = largest_gap(table)
        se, how, null = symbols.errors(lambda rows: largest_gap(normalised(rows)).nanmean())
        return MutualInformationGapResult(
            value=float(gap.nanmean()),
            se=se,
            null=null,
            n=len(symbols.rows),
            range=(0.0, 1.0),
            flags=symbols.flags,
            conventions={"bins": f"{self.n_bins} of equal numbers of rows", "se": how},
            gap=gap,
            best=table.nan_to_num().argmax(1),
            information=table,
        )


mutual_information_gap = as_function(MutualInformationGap)
