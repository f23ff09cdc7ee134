"""Intrinsic dimension of a site from each row's two nearest neighbours."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._neighbourhood import Neighbourhood, neighbour_distances, null_dimension
from sonde.measure._reads import SampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.halves import half_error, random_halves
from sonde.stats.sampled_rows import LEAST_FOR_HALVES, SampledRows

Fit = Literal["ml", "slope"]
KEPT = 0.9


@final
@dataclass(frozen=True, kw_only=True)
class TwoNNResult(Result):
    """Intrinsic dimension; ``decimated`` holds it for all, half and a quarter of the rows.

    A dimension that drifts with the number of rows is that of noise or of a curved surface.
    ``n_copies`` copies of equal rows were left out.
    """

    direction: Direction = "higher"
    decimated: Float[Tensor, "3"]
    n_copies: int


@final
@dataclass(frozen=True)
class TwoNN(SampleInstrument):
    """Intrinsic dimension from each row's ratio of second to first neighbour distance.

    Where rows lie evenly on a surface of dimension ``d``, the ratio ``mu`` of the two distances has
    ``P(mu > t) = t^-d``, at any density. ``d = (n - 1) / sum ln mu``. The null is the estimate for
    the same rows with each unit's values shuffled: on white rows it is below their number of units.

    Range        (0, inf); higher = more directions. Invariant to rotation, isotropic scale,
                 shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), never more than 1,024 lines at once.
    Assumes      at most some ``2 log10 n`` dimensions (flag ``high_dim``): more are
                 underestimated. Copies of a row are left out. Of each other group (document) only
                 the nearest row is a neighbour.
    Differs      from the paper: maximum likelihood by default. The standard error takes the ratios
                 of different rows as independent and is up to a fifth too small.

    Parameters
    ----------
    fit_by : {"ml", "slope"}, default="ml"
        Maximum likelihood, or the slope of ``-ln P`` on ``ln mu`` without the largest tenth. The
        function ``two_nn`` calls this parameter ``fit``; in the class, ``fit`` is a method.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> flat = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    >>> round(two_nn(flat @ torch.ones(2, 5) + torch.nn.functional.pad(flat, (0, 3))).value)
    2

    References
    ----------
    facco2017twonn, eckmann1992limits
    """

    fit_by: Fit = "ml"
    m: int = SAMPLE
    paper: ClassVar[str] = "facco2017twonn"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"fit_by": "slope", "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, fit_by=("ml", "slope"))

    def result(self, sample: HashSampleState) -> TwoNNResult:
        """Fit the distribution of the ratios."""
        neighbourhood = Neighbourhood.of(sample)
        rows = neighbourhood.rows
        near = _two_distances(rows)
        logs = torch.log(near[:, 1] / near[:, 0])
        value = self._dimension(logs)
        se, how = self._error(rows, logs, value)
        first = [rows.take(torch.arange(len(rows) // part)) for part in (2, 4)]
        return TwoNNResult(
            value=float(value),
            se=se,
            null=null_dimension(rows, lambda r: self._dimension(_log_ratios(r))),
            n=rows.n_groups,
            range=(0.0, math.inf),
            flags=neighbourhood.flags_of(value, near[:, 0]),
            conventions={"fit": self.fit_by, "neighbours": "of other groups", "se": how},
            decimated=torch.stack([value, *(self._dimension(_log_ratios(r)) for r in first)]),
            n_copies=neighbourhood.n_copies,
        )

    def _dimension(self, logs: Float[Tensor, "row"]) -> Float[Tensor, ""]:
        if len(logs) == 0:
            return torch.tensor(math.nan, dtype=torch.float64)
        if self.fit_by == "ml":
            return (len(logs) - 1) / logs.sum()
        kept = max(1, math.floor(KEPT * len(logs)))
        x = torch.sort(logs).values[:kept]
        y = -torch.log1p(-torch.arange(1, kept + 1, dtype=torch.float64) / len(logs))
        return (x @ y) / (x @ x) if bool(x.any()) else torch.tensor(math.inf, dtype=torch.float64)

    def _error(
        self, rows: SampledRows, logs: Float[Tensor, "row"], value: Float[Tensor, ""]
    ) -> tuple[Tensor | None, str]:
        if rows.n_groups < LEAST_FOR_HALVES or not bool(torch.isfinite(value)):
            return None, f"none: fewer than {LEAST_FOR_HALVES} groups, or no value"
        if self.fit_by == "ml":
            se, how = rows.error_of_mean(logs)
            return (None if se is None else se * value.square()), how
        halves = random_halves(rows.group)
        values = torch.stack([self._dimension(logs[h]) for h in halves])
        return half_error(values, rows.group), "halves"


def _log_ratios(rows: SampledRows) -> Float[Tensor, "row"]:
    """Return the log ratio of the two distances; empty below three groups."""
    near = _two_distances(rows)
    return torch.log(near[:, 1] / near[:, 0])


def _two_distances(rows: SampledRows) -> Float[Tensor, "row 2"]:
    """Return each row's distances to its two nearest groups; empty below three groups."""
    if rows.n_groups < 3:
        return torch.zeros(0, 2, dtype=torch.float64)
    return neighbour_distances(rows, 2)


two_nn = as_function(TwoNN, called={"fit_by": "fit"})
