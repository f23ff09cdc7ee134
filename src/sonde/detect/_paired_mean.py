"""Whether the mean moved where both sides are the same rows: signs of the differences of pairs."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sonde.detect._sides import Rows, permutation_p
from sonde.detect._tails import signs_tail
from sonde.stats import inverse_root

SIGNS = 1999


@dataclass(frozen=True)
class PairedMean:
    """A p-value, and whether there are no more pairs than directions in which they differ."""

    p: float
    few: bool


def paired_mean(pairs: Rows, times: int = SIGNS) -> PairedMean:
    """Return how often differences of pairs with random signs add up to at least as much.

    Their sum is measured in a metric of their second moments, which signs do not change. It is the
    plain one where there are two pairs for each direction: Hotelling's statistic for one sample
    rises with that. With fewer the second moments, of units divided by their root mean square, are
    shrunk towards the identity: unshrunk, all signs give one sum if there are as many directions as
    pairs.
    """
    rows = pairs.y - pairs.x
    metric = inverse_root(rows.T @ rows, len(rows), 0.0)
    if metric.rank == 0:
        return PairedMean(1.0, few=False)
    white = rows @ metric.root if len(rows) >= 2 * metric.rank else _shrunk(rows)
    size = float(white.sum(0).square().sum())
    shuffled = (pairs.signs(times) @ white).square().sum(1)
    p = permutation_p(size, shuffled)
    if p == 1 / (1 + times):
        p = min(p, signs_tail(white))
    return PairedMean(p, few=len(rows) <= metric.rank)


def _shrunk(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row rank"]:
    """Return rows in the shrunk metric of their second moments."""
    scale = rows.square().mean(0).sqrt()
    even = rows[:, scale > 0] / scale[scale > 0]
    return even @ inverse_root(even.T @ even, len(even), "oas").root
