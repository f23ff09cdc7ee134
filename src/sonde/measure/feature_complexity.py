"""How late in a network its last site's features become linearly predictable.

Principal directions also differ in variance, and a large variance alone makes a feature easy to
read off. To exclude that effect, pass features of equal variance as the units of the last site.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from scipy.special import betainc
from torch import Tensor

from sonde.core.chart import Chart, cells, matrix
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.normal_equations import GRAM_CUT
from sonde.stats.sampled_rows import SampledRows

"""Part of the largest eigenvalue (standardised units) below which a direction is ignored."""
EMERGED = 0.9

Features = Literal["principal", "units"]


@final
@dataclass(frozen=True, kw_only=True)
class FeatureComplexityResult(Result):
    """Mean complexity over features; ``complexity`` holds each feature's value.

    ``r2`` is the adjusted share of each feature's variance that each earlier site explains, and
    ``emerges`` the first site with nine tenths of the share of the last earlier site (-1: nowhere).
    """

    title: ClassVar[str] = "Fraction of each feature's variance that a layer explains"
    direction: Direction = "higher"
    complexity: Float[Tensor, "feature"]
    r2: Float[Tensor, "layer feature"]
    emerges: Int[Tensor, "feature"]

    @property
    def nats(self) -> Float[Tensor, "layer feature"]:
        """Usable information of each layer about each feature, ``-1/2 ln(1 - r2)``."""
        return -0.5 * torch.log1p(-self.r2)

    def chart(self) -> Chart:
        """Return a chart with a heat map of layers and features."""
        rows = cells(self.r2.tolist(), "feature", "layer", "r2")
        return matrix(self.title, rows, "layer", "feature", "r2")


@final
@dataclass(frozen=True)
class FeatureComplexity(PairSampleInstrument):
    """Fraction of a feature that earlier sites do not explain, averaged over sites.

    ``1 - mean_l max(R2_l, 0)`` with the share ``R2_l`` of the feature's variance that least squares
    from site ``l`` explain, adjusted for the number of units. 0: a linear map reads it off
    everywhere. 1: no site but the last has it. With states of one layer at successive checkpoints
    in place of layers it is the time of emergence.

    Range        [0, 1]; higher = readable only late. Invariant to  invertible linear maps and
                 shifts of every earlier site; of the last: rotation, isotropic scale, shifts.
    Cost         one pass; state ``m`` rows per site; result O(layers (m dim^2 + dim^3)).
    Assumes      more rows in the sample than ``dim + 1`` (flag ``few_rows``). Sites in order of
                 execution, rows that correspond.
    Differs      from the paper: least squares on a sample in place of trained probes.

    Parameters
    ----------
    features : {"principal", "units"}, default="principal"
        The principal directions of the last site, or its units as they are.
    k : int, default=20
        How many principal directions.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> late = torch.cat([x, x[:, :1] * x[:, 1:2]], 1)
    >>> feature_complexity([x, 2 * x, late], features="units").complexity.round(decimals=1).tolist()
    [0.0, 0.0, 0.0, 1.0]

    References
    ----------
    fel2024complexity, xu2020usable
    """

    features: Features = "principal"
    k: int = 20
    m: int = SAMPLE
    span: ClassVar[Span] = "all"
    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "fel2024complexity"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"features": "units", "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, features=("principal", "units"), k=">= 1")

    def result(self, samples: tuple[HashSampleState, ...]) -> FeatureComplexityResult:
        """Regress the last site's features on each earlier site."""
        rows = SampledRows.of(samples)
        if self.features == "principal":
            rows = replace(rows, rows=(*rows.rows[:-1], _principal(rows.rows[-1], self.k)))
        r2, ranks = _explained(rows)
        complexity = 1.0 - r2.clamp(min=0.0).mean(0)
        last = r2[-1]
        reached = (r2 >= EMERGED * last) & (last > 0)
        raised_flags = {
            "few_rows": bool((len(rows) - 1 <= ranks).any()),
            "dead": bool((ranks == 0).any()) or bool(_dead(rows.rows[-1]).any()),
        }
        live = ~_dead(rows.rows[-1]).cpu()
        se, how = rows.standard_error(
            lambda half: (1 - _explained(half)[0][:, live].clamp(min=0)).mean()
        )
        if se is not None and not bool(se.isfinite()):
            se, how = None, "none: too few rows for halves"
        return FeatureComplexityResult(
            value=float(complexity[live].mean()),
            se=se,
            null=1.0 - sum(_by_chance(len(rows), rank) for rank in ranks.tolist()) / len(ranks),
            n=len(rows),
            range=(0.0, 1.0),
            flags=(*rows.flags, *(flag for flag, raised in raised_flags.items() if raised)),
            conventions={"features": self.features, "r2": "adjusted", "se": how},
            complexity=complexity,
            r2=r2,
            emerges=torch.where(reached.any(0), reached.int().argmax(0), -1),
        )


def _dead(x: Float[Tensor, "row dim"]) -> Tensor:
    return ~(x != x[:1]).any(0)


def _principal(x: Float[Tensor, "row dim"], k: int) -> Float[Tensor, "row direction"]:
    """Return the rows projected on the directions of largest variance."""
    z = x - x.sum(0) / max(len(x), 1)
    return z @ torch.linalg.eigh(z.T @ z)[1].flip(1)[:, :k]


def _explained(
    rows: SampledRows,
) -> tuple[Float[Tensor, "layer feature"], Int[Tensor, "layer"]]:
    """Return each site's adjusted explained fraction of each feature, and the sites' ranks.

    NaN unless there are at least two more rows than directions; NaN if the feature is constant.
    """
    n, goal = len(rows), rows.rows[-1]
    goal = (goal - goal.sum(0) / max(n, 1)) / torch.where(_dead(goal), math.nan, 1.0)
    total = goal.square().sum(0)
    shares: list[Tensor] = []
    ranks: list[int] = []
    for x in rows.rows[:-1]:
        basis = _basis(x)
        freedom = n - 1 - basis.shape[1]
        left = (goal - basis @ (basis.T @ goal)).square().sum(0) / total
        ratio = (n - 1) / freedom if freedom > 0 else math.nan
        shares.append((1.0 - left * ratio).cpu())
        ranks.append(basis.shape[1])
    return torch.stack(shares), torch.tensor(ranks)


def _basis(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row rank"]:
    """Return an orthonormal basis of all linear functions of the centred rows."""
    z = x - x.sum(0) / max(len(x), 1)
    z = z / torch.where(_dead(x), torch.inf, z.square().sum(0).sqrt())
    values, vectors = torch.linalg.eigh(z.T @ z)
    kept = values > GRAM_CUT * values[-1:].clamp(min=0)
    return z @ (vectors[:, kept] * values[kept].rsqrt())


def _by_chance(n: int, rank: int) -> float:
    """Return the expected adjusted ``max(R2, 0)`` of a feature unrelated to the site."""
    a, b = rank / 2, (n - 1 - rank) / 2
    if a <= 0 or b <= 0:
        return 0.0 if a <= 0 else math.nan
    edge = b / (a + b)
    return float(betainc(b, a, edge) - betainc(b + 1, a, edge))


feature_complexity = as_function(FeatureComplexity)
