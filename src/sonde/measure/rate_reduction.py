"""Reduction of the coding rate of rows when their classes are known.

Rate reduction is large if classes use different directions and each class uses many. For the coding
rate of all rows alone see ``coding_rate``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._coding import expected_rate
from sonde.stats import ClassDirectionMoments, ClassMomentsState, gaussian_rate, rate_gain


@final
@dataclass(frozen=True, kw_only=True)
class RateReductionResult(Result):
    """Nats saved per row: ``whole`` without classes, minus the mean of ``each``."""

    direction: Direction = "higher"
    unit: str = "nats"
    labels: Tensor
    each: Float[Tensor, "class"]
    whole: float


@final
@dataclass(frozen=True)
class RateReduction(Instrument):
    """Coding rate of all rows minus the mean coding rate of each class.

    ``R - sum_k n_k / n R_k`` with ``R = ln det(1 + dim / eps2 M) / 2`` and the second moments ``M``
    of unit rows. It is never below 0 and rises with fewer rows: the null is the value that labels
    without meaning would give for the same rows.

    Range        [0, R] nats; higher = classes in more different directions.
                 Invariant to  rotation, isotropic scale.
    Cost         one pass; state 8 classes dim^2 bytes; result O(classes dim^3).
    Assumes      two classes or more; rows with label -1 are left out.
    Differs      from the paper: for one row, not summed; the null is ours, by the law of large
                 random matrices.

    Parameters
    ----------
    eps2 : float, default=0.5
        Tolerated squared error of a row. Compare values only at equal ``eps2``.

    Examples
    --------
    >>> rows = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]
    >>> round(rate_reduction(rows, [0, 0, 1, 1], eps2=1.0).value, 6)  # ln 2 - ln 3 / 2
    0.143841

    References
    ----------
    yu2020mcr2
    """

    eps2: float = 0.5
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "yu2020mcr2"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"eps2": 0.01})

    def __post_init__(self) -> None:
        check_ranges(self, eps2="> 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for class moments of unit-length rows."""
        return {"directions": ClassDirectionMoments()}

    def result(
        self, directions: ClassMomentsState, independent_squares: float | None = None
    ) -> RateReductionResult:
        """Compare the volume of all rows with the classes' volumes."""
        n, count, dim = directions.n_labelled, len(directions.labels), directions.mean.shape[1]
        if count < 2:
            raise InputError(
                f"RateReduction: expected at least two classes, got {count}. "
                "Pass labels, or check the label column."
            )
        scale, weight, mean = dim / self.eps2, directions.weight, directions.mean
        seconds = directions.within / weight[:, None, None] + mean[:, :, None] * mean[:, None, :]
        share = weight / weight.sum()
        total = (share[:, None, None] * seconds).sum(0)
        middle = (share @ mean).detach()
        n_alive = n * float(total.detach().diagonal().sum())
        whole = gaussian_rate(total, scale)
        value, each = rate_gain(seconds, share, scale)
        fewer = [k * (independent_squares or n) / n for k in directions.n.tolist()]
        flags = ["dead"] if n_alive < n - 0.5 else []
        flags += ["few_rows"] if int(directions.n.min()) <= dim else []
        flags += [] if directions.unlabelled is None else ["unlabelled"]
        return RateReductionResult(
            value=value if n_alive > 0.5 else math.nan,
            null=float(whole.detach()) - _shuffled(total.detach(), middle, fewer, scale),
            n=n,
            range=(0.0, float(whole.detach())),
            flags=tuple(flags),
            conventions={"eps2": self.eps2, "rows": "unit length, not centred"},
            labels=directions.labels,
            each=each.detach(),
            whole=float(whole.detach()),
        )


def _shuffled(
    total: Float[Tensor, "dim dim"], mean: Float[Tensor, "dim"], counts: list[float], scale: float
) -> float:
    """Return the mean rate of random classes of these sizes.

    ``n_k`` rows drawn without replacement vary as ``1 / (1 / n_k - 1 / n)`` drawn with replacement.
    """
    n = sum(counts)
    rates = {k: expected_rate(total, mean, 1.0 / (1.0 / k - 1.0 / n), scale) for k in set(counts)}
    return sum(k / n * rates[k] for k in counts)


rate_reduction = as_function(RateReduction, "label")
