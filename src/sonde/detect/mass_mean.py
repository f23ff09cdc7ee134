"""The difference of two class means as a probe, raw or whitened.

One pass and no training. Use it to ask whether a layer tells two classes apart along one direction;
for a direction tuned to the border use ``LinearProbe``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.instrument import Detector, NotLabelled, Where
from sonde.core.statistic import Statistic
from sonde.detect._probe import ProbeScorer, probe_scorer
from sonde.stats import ClassMoments, ClassMomentsState, TwoGroups
from sonde.stats.shrinkage import Shrinkage, check_shrinkage, inverse_root


@final
@dataclass(frozen=True)
class MassMean(Detector):
    """Signed projection of each row on the difference of two class means.

    ``(x - (m_1 + m_0) / 2) . w`` with ``w = (m_1 - m_0) / |m_1 - m_0|``, or with ``whiten``
    ``w = S^-1 (m_1 - m_0)`` for the covariance ``S`` within classes: linear discriminant analysis,
    whose score is the log-likelihood ratio of two Gaussians of one shape.

    Range        (-inf, inf), units of the rows or nats (whitened); higher = more like class
                 ``positive``, 0 lies half way between the means.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^3) whitened.
    Assumes      labels; all classes but ``positive`` are one group.
    Differs      from the paper: the covariance is shrunk.

    Parameters
    ----------
    whiten : bool, default=False
        Take the difference in the metric of the covariance within classes.
    positive : int, default=1
        The class for which scores are high.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity mixed into the covariance when whitening.

    Examples
    --------
    >>> import torch
    >>> scorer = MassMean().fit([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]], [0, 0, 1, 1])
    >>> scorer.score(torch.tensor([[2.0, 9.0], [5.0, 0.0]])).tolist()
    [0.0, 3.0]

    References
    ----------
    marks2023geometry, chen2010oas
    """

    whiten: bool = False
    positive: int = 1
    shrinkage: Shrinkage = "oas"
    paper: ClassVar[str] = "marks2023geometry"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"whiten": True}, {"positive": 0})

    def __post_init__(self) -> None:
        check_shrinkage("MassMean", self.shrinkage)

    @property
    def usual(self) -> Where:
        """Select rows not labelled ``positive``."""
        return NotLabelled(self.positive)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the moments of each class."""
        return {"by_class": ClassMoments()}

    def result(self, by_class: ClassMomentsState) -> ProbeScorer:
        """Compute the difference of the means."""
        groups = TwoGroups.of("MassMean", by_class, self.positive)
        axis, middle = groups.gap, groups.mean.mean(0)
        if not self.whiten:
            length = axis.norm()
            return probe_scorer(
                groups, axis / length if length > 0 else axis, middle, self.positive
            )
        metric = inverse_root(groups.within, groups.n_rows, self.shrinkage)
        if metric.rank:
            axis = metric.root @ (metric.root.T @ axis)
        return probe_scorer(groups, axis, middle, self.positive, shrinkage=metric.shrinkage)
