"""Eigenvalues of a site's covariance, compared with those of white rows."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.result import Result
from sonde.measure._spectra import Rows, SpectrumInstrument, spectral, white_degrees
from sonde.stats.white_spectrum import white_eigenvalues


@final
@dataclass(frozen=True, kw_only=True)
class SpectrumResult(Result):
    """Eigenvalues in descending order; ``share`` is each one's fraction of the total variance."""

    title: ClassVar[str] = "Eigenvalues of the covariance"
    share: Float[Tensor, "rank"]
    dim: int

    def needed(self, share: float) -> int:
        """Return how many leading directions hold this fraction of the variance."""
        return int((self.share.cumsum(0) < share - 1e-12).sum()) + 1


@final
@dataclass(frozen=True)
class Spectrum(SpectrumInstrument):
    """Positive eigenvalues of the covariance in descending order, with their fractions.

    The variance along each principal direction. The null is the spectrum of white rows of the same
    number and total variance: its first eigenvalue is what noise alone would give.

    Range        [0, inf), in squared units of the rows; higher = more variance in a direction.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      more rows than ``dim`` for small eigenvalues (flag ``few_rows``).
    Differs      eigenvalues below the rounding of the largest are left out (``rank_deficient``).

    Parameters
    ----------
    source : {"moments", "sample"}, default="moments"
        Covariance of all rows, or the Gram matrix of the hash sample (for very wide sites).

    Examples
    --------
    >>> spectrum([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).value.tolist()
    [2.0, 0.5]

    References
    ----------
    pearson1901lines, marchenko1967
    """

    paper: ClassVar[str] = "pearson1901lines"

    def result(self, rows: Rows, independent: float | None = None) -> SpectrumResult:
        """Order the eigenvalues."""
        spectrum = spectral(rows)
        values, total = spectrum.values, spectrum.values.sum()
        degrees = white_degrees(rows, spectrum.n, True, independent)
        if len(values) == 0:
            values = share = torch.full((1,), torch.nan, dtype=torch.float64)
        else:
            share = values / total
        return SpectrumResult(
            value=values,
            null=_white(len(values), spectrum.dim, degrees) * total,
            n=spectrum.n,
            unit="squared units of the rows",
            range=(0.0, float("inf")),
            flags=spectrum.flags,
            conventions={
                "centered": True,
                "divisor": "n",
                "se": "not given for a whole spectrum: take one of the ranks",
            },
            share=share,
            dim=spectrum.dim,
        )


def _white(count: int, dim: int, n: int) -> Float[Tensor, "count"]:
    """Return the fractions of white rows' first ``count`` directions."""
    rank, nodes, weights = white_eigenvalues(dim, n)
    middle = (torch.arange(rank, dtype=torch.float64) + 0.5) / rank
    at = torch.searchsorted(weights.cumsum(0), middle).clamp(max=len(nodes) - 1)
    return (nodes[at] / nodes[at].sum())[:count]


spectrum = as_function(Spectrum)
