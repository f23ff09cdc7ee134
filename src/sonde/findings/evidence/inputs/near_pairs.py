"""Rows that are far nearer to another row than the local density explains."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import poisson
from torch import Tensor

from sonde.stats.neighbours import nearest

FAR = 5
MEDIAN = 0.9526  # -log(1 - F) with 4 F^3 - 3 F^4 = 1/2
ELSEWHERE, EQUAL, LIKE = 0.5, 1e-4, 0.01
ROUNDING = 2.0**-20
"""Distances below this fraction of the rows' median length are the rounding of sums in float32."""


@dataclass(frozen=True, eq=False)
class NearPairs:
    """Rows whose nearest neighbour is closer than ``eps`` times the distance to the fifth.

    Parameters
    ----------
    row, partner : Int[Tensor, "pair"]
        Indices, nearest pair first.
    ratio : Float[Tensor, "pair"]
        Nearest over fifth distance.
    eps, dim, expected, p : float
        The limit; the local dimension of the rows; how many rows a smooth density
        would put below the limit, and the chance of at least as many as were seen.
    n_alike : int, default=0
        Rows below the limit that were left out: they have the length of their partner.
    """

    row: Int[Tensor, "pair"]
    partner: Int[Tensor, "pair"]
    ratio: Float[Tensor, "pair"]
    eps: float
    dim: float
    expected: float
    p: float
    n_alike: int = 0

    def __len__(self) -> int:
        return len(self.row)

    def chance(self, n: int) -> float:
        """Return the probability of at least ``n`` rows below the limit."""
        return float(poisson.sf(n - 1, self.expected))


def near_pairs(
    x: Float[Tensor, "row dim"],
    group: Int[Tensor, "row"],
    y: Float[Tensor, "row2 dim"] | None = None,
    group2: Int[Tensor, "row2"] | None = None,
    *,
    lengths: tuple[Tensor, Tensor] | None = None,
    elsewhere: tuple[Tensor, Tensor] | None = None,
    equal_alone: bool = False,
    dim: float | None = None,
    limit: float = 0.1,
    chance: float = 0.01,
) -> NearPairs:
    """Return near pairs of rows in different groups, among ``x`` or between ``x`` and ``y``.

    If the density around a row is even, its four nearest neighbours lie uniformly in the ball that
    reaches to the fifth. The nearest is then within ``eps`` of the ball's radius with chance
    ``1 - (1 - eps^d)^4 < 4 eps^d``. ``eps`` is ``limit``, or less if more than ``chance`` rows
    would be expected below it. With the ``lengths`` of both sides, pairs of equal length are
    counted and left out, because texts of one length lie close together. With ``elsewhere``, the
    rows of both sides at another site, a pair counts only if its distance there is at most half
    of the distance to the fifth: means over one-channel images agree if two images are equally
    bright. Rows that are equal must lie within a hundredth there: a first layer that sees a part of
    the inputs has equal states for different inputs. With ``equal_alone``, only pairs of equal rows
    are tested, and may be near there, since they may differ in what the first site does not see.
    Where the fifth row is no further than rounding reaches, all rows are equal and none is near.
    """
    other = x if y is None else y
    other_group = group if group2 is None else group2
    distance, index = nearest(x, other, FAR, group=group, group2=other_group)
    is_known = torch.isfinite(distance[:, -1]) & (distance[:, -1] > rounding(other))
    ratio = torch.full((len(x),), torch.inf, dtype=torch.float64)
    ratio[is_known] = distance[is_known, 0] / distance[is_known, -1]
    dim = local_dimension(distance) if dim is None else dim
    n = int(is_known.sum())
    eps = min(limit, (chance / (4 * max(n, 1))) ** (1 / dim))
    below = torch.nonzero(ratio < eps).flatten()
    below = below[torch.argsort(ratio[below], stable=True)]
    partner, n_below = index[below, 0], len(below)
    if lengths is not None:
        differ = lengths[0][below] != lengths[1][partner]
        below, partner = below[differ], partner[differ]
    n_alike = n_below - len(below)
    if elsewhere is not None:
        a, b = elsewhere
        far = nearest(a[below], b, FAR, group=group[below], group2=other_group)[0][:, -1]
        apart, are_equal = (a[below] - b[partner]).norm(dim=1), ratio[below] <= EQUAL
        if equal_alone:
            near = ~are_equal | (apart <= ELSEWHERE * far)
        else:
            near = apart <= torch.where(are_equal, LIKE, ELSEWHERE) * far
        near &= far > rounding(b)
        below, partner = below[near], partner[near]
    expected = 4 * n * eps**dim
    p = float(poisson.sf(len(below) - 1, expected))
    return NearPairs(below, partner, ratio[below], eps, dim, expected, p, n_alike)


def rounding(x: Float[Tensor, "row dim"]) -> float:
    """Return the distance that rounding alone puts between equal rows."""
    return ROUNDING * float(x.norm(dim=1).median()) if len(x) else 0.0


def local_dimension(distance: Float[Tensor, "row 5"]) -> float:
    """Return the dimension at which a uniform density gives the median ``log(r5 / r2)``.

    Inside the fifth neighbour's ball the four nearer ones are uniform, so ``-d log(r / r5)`` are
    four standard exponentials; ``r2`` belongs to the second largest, whose median is ``MEDIAN``.
    Neither the nearest distance nor the tails enter, so that near pairs cannot bend the law by
    which they are judged. Between 0.1 and 1,000.
    """
    usable = torch.isfinite(distance[:, -1]) & (distance[:, -1] > 0)
    if not bool(usable.any()):
        return 1.0
    logs = (distance[usable, -1] / distance[usable, 1]).log()
    middle = float(logs.median())
    return min(1000.0, max(0.1, MEDIAN / middle)) if middle > 0 else 1000.0
