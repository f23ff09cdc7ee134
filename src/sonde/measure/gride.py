"""Intrinsic dimension of a site at increasing scales, from pairs of ever farther neighbours."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.result import Direction, Result
from sonde.measure._neighbourhood import (
    Neighbourhood,
    nearest_distance,
    neighbour_distances,
    null_dimension,
)
from sonde.measure._reads import SampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.sampled_rows import SampledRows

WITHIN = 0.05
LOWEST, HIGHEST = 1e-6, 1e9


@final
@dataclass(frozen=True, kw_only=True)
class GrideResult(Result):
    """Dimension on the plateau; ``dimension`` against ``distance`` is the whole curve.

    ``rank`` is the rank of the nearer neighbour at each scale (the farther neighbour has twice that
    rank), ``distance`` the mean distance of the farther neighbour; ``error`` and ``shuffled`` are
    the standard error and the null of each scale. ``plateau`` is the first and last rank of the
    scales that agree.
    """

    title: ClassVar[str] = "Intrinsic dimension over scales"
    direction: Direction = "higher"
    rank: Int[Tensor, "scale"]
    dimension: Float[Tensor, "scale"]
    distance: Float[Tensor, "scale"]
    error: Float[Tensor, "scale"]
    shuffled: Float[Tensor, "scale"]
    plateau: tuple[int, int]
    n_copies: int

    def chart(self) -> Chart:
        """Return a chart of dimension over neighbour distance, with its null."""
        rows = [
            {"distance": far, "dimension": d, "rows": name}
            for name, curve in (("as they are", self.dimension), ("shuffled", self.shuffled))
            for far, d in zip(self.distance.tolist(), curve.tolist(), strict=True)
            if math.isfinite(d)
        ]
        x = ChartAxis("distance", log=True)
        return curves(self.title, rows, x, "dimension", by="rows")


@final
@dataclass(frozen=True)
class Gride(SampleInstrument):
    """Intrinsic dimension at several scales, and where it does not depend on the scale.

    From the ratio of the distances of neighbours ``a`` and ``2 a``, for ``a = 1, 2, 4, ...``. Near
    neighbours see noise, far neighbours curvature and edges. Between them may lie a plateau: the
    longest run of scales within 5 % of each other (the nearer run of two). Its mean is the value.
    With ``a = 1`` it is ``two_nn``. The ratio ``mu`` of evenly spread rows has ``mu^-d``
    distributed as ``Beta(a, a)``; ``d`` maximises that likelihood.

    Range        (0, inf); higher = more directions. Invariant to rotation, isotropic scale,
                 shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), six times over for the error.
    Assumes      at most some ``2 log10 n`` dimensions (flag ``high_dim``): more are
                 underestimated. Copies of a row are left out. Of each other group (document) only
                 the nearest row is a neighbour. Scales that need more groups than there are do not
                 appear.
    Differs      from the paper: a plateau is named. Each half of the rows finds its own for the
                 error, which is some 1.4 times too large for 200 rows.

    Parameters
    ----------
    largest : int, default=32
        Largest rank of the nearer neighbour; a power of two.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> flat = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    >>> round(gride(torch.nn.functional.pad(flat, (0, 3)), largest=8).value)
    2

    References
    ----------
    denti2022gride, eckmann1992limits
    """

    largest: int = 32
    m: int = SAMPLE
    paper: ClassVar[str] = "denti2022gride"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"largest": 4}, {"largest": 1, "m": 64})

    def __post_init__(self) -> None:
        if self.largest < 1 or self.largest & (self.largest - 1):
            raise InputError(
                f"Gride: expected largest to be a power of 2 (1, 2, 4, ...), got {self.largest}."
            )

    def result(self, sample: HashSampleState) -> GrideResult:
        """Fit each scale, and find the plateau."""
        neighbourhood = Neighbourhood.of(sample)
        curve, distance = _curve(neighbourhood.rows, self.largest)
        first, last = _plateau(curve)

        def figures(rows: SampledRows) -> Float[Tensor, "_figure"]:
            scales, _ = _curve(rows, self.largest, len(curve))
            defined = scales[~scales.isnan()]
            a, b = _plateau(defined)
            return torch.cat([defined[a : b + 1].mean()[None], scales])

        value = curve[first : last + 1].mean()
        se, how = neighbourhood.error(figures)
        null = null_dimension(neighbourhood.rows, figures)
        none = torch.full_like(curve, math.nan)
        return GrideResult(
            value=float(value),
            se=None if se is None else se[0],
            null=None if null is None else null[0],
            n=neighbourhood.rows.n_groups,
            range=(0.0, math.inf),
            flags=neighbourhood.flags_of(value, nearest_distance(neighbourhood.rows)),
            conventions={"neighbours": "of other groups", "plateau": "within 5 %", "se": how},
            rank=2 ** torch.arange(len(curve)),
            dimension=curve,
            distance=distance,
            error=none if se is None else se[1:],
            shuffled=none if null is None else null[1:],
            plateau=(2**first, 2**last),
            n_copies=neighbourhood.n_copies,
        )


def _curve(
    rows: SampledRows, largest: int, scales: int | None = None
) -> tuple[Float[Tensor, "scale"], Float[Tensor, "scale"]]:
    """Return each scale's dimension and mean distance, for scales with enough groups.

    If a number of ``scales`` is given, scales without enough groups are NaN.
    """
    enough = [2**i for i in range(largest.bit_length()) if 2 ** (i + 1) < rows.n_groups]
    none = torch.full((max((scales or 1) - len(enough), 0),), math.nan, dtype=torch.float64)
    if not enough:
        return none, none
    near = neighbour_distances(rows, 2 * enough[-1])
    logs = [torch.log(near[:, 2 * a - 1] / near[:, a - 1]) for a in enough]
    dimensions = torch.stack([_beta_dimension(x, a) for x, a in zip(logs, enough, strict=True)])
    far = torch.stack([near[:, 2 * a - 1].mean() for a in enough])
    return torch.cat([dimensions, none]), torch.cat([far, none])


def _beta_dimension(logs: Float[Tensor, "row"], a: int) -> Float[Tensor, ""]:
    """Return the maximum-likelihood ``d`` if ``mu^-d`` is ``Beta(a, a)``, from ``ln mu``.

    The derivative of the likelihood falls with ``d``: its only zero is sought in ``ln d``.
    """
    total = float(logs.sum())
    if a * total * HIGHEST <= len(logs):  # all distances of a row are equal, to rounding
        return torch.tensor(math.inf, dtype=torch.float64)

    def slope(log_d: float) -> float:
        d = math.exp(log_d)
        inner = torch.where(logs > 0, logs / -torch.expm1(-d * logs), 1.0 / d)
        return d * (len(logs) / d + (a - 1) * float(inner.sum()) - (2 * a - 1) * total)

    root: Any = brentq(slope, math.log(LOWEST), math.log(HIGHEST), xtol=1e-12)
    return torch.tensor(math.exp(root), dtype=torch.float64)


def _plateau(curve: Float[Tensor, "scale"]) -> tuple[int, int]:
    """Return the first and last scale of the longest run that varies by less than 5 %."""
    runs = [
        (last - first, -first)
        for first in range(len(curve))
        for last in range(first, len(curve))
        if float(curve[first : last + 1].max() / curve[first : last + 1].min()) <= 1.0 + WITHIN
    ]
    length, first = max(runs, default=(0, 0))
    return -first, length - first


gride = as_function(Gride)
