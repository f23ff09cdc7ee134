"""Lengths of a site's rows: median and mean, also for first and special tokens."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument, Read, WithSinks
from sonde.core.result import Direction, Result
from sonde.stats.log_histogram import BINS, log_centres
from sonde.stats.token_norms import TokenNorms, TokenNormsState


@final
@dataclass(frozen=True, kw_only=True)
class NormsResult(Result):
    """Median norm; ``medians`` and ``energy`` are for first, special and other tokens."""

    direction: Direction = "higher"
    mean: float
    rms: float
    medians: Float[Tensor, "3"]
    energy: Float[Tensor, "3"]


@final
@dataclass(frozen=True)
class Norms(Instrument):
    """Median Euclidean length of the rows, with mean, root mean square, and kinds of tokens.

    The median does not see the few tokens whose rows are a hundred times longer than all others;
    ``medians`` shows them, and ``energy`` is each bucket's share of the sum of squares.

    Range        [0, inf), in units of the rows; higher = longer rows.
    Cost         one pass; state 13 KB; result O(1).
    Assumes      nothing. Position 0 counts as first token only where positions are known.
    Differs      the median is interpolated in a logarithmic histogram: right to 4 % of a smooth
                 density, to a factor of 1.09 of equal lengths. Below 1e-12 or above 3e7 it is NaN,
                 and ``clipped``; mean and rms are exact.

    Examples
    --------
    >>> norms([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0]]).mean
    5.0

    References
    ----------
    sun2024massive
    """

    paper: ClassVar[str] = "sun2024massive"

    def reads(self) -> dict[str, Read]:
        """Return the request for the histogram of norms."""
        return {"norms": Read(TokenNorms(), WithSinks())}

    def result(self, norms: TokenNormsState) -> NormsResult:
        """Compute the median over all kinds of tokens."""
        n = int(norms.n.sum())
        mean_square = float(norms.square.detach().sum()) / n
        median = _on_grid(norms.median_all)
        flags = [] if mean_square > 0 else ["dead"]
        return NormsResult(
            value=median,
            n=n,
            unit="units of the rows",
            range=(0.0, math.inf),
            flags=(*flags, *(["clipped"] if bool(median.isnan()) else [])),
            conventions={
                "median": "interpolated in a bin of width 2^(1/4)",
                "se": "smaller than a bin for more than some hundred rows",
                "null": "none: a length has no reference",
            },
            mean=float(norms.sum.detach().sum()) / n,
            rms=math.sqrt(mean_square),
            medians=_on_grid(norms.median),
            energy=torch.as_tensor(norms.energy_share).detach(),
        )


def _on_grid(median: Float[Tensor, "*bucket"]) -> Float[Tensor, "*bucket"]:
    """Return medians; NaN in the outermost bins, which are open."""
    up = log_centres()[BINS // 2 + 1 :].to(median)
    return median.masked_fill((median == up[0]) | (median == up[-1]), torch.nan)


norms = as_function(Norms)
