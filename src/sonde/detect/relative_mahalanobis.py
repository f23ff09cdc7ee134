"""Distance to the nearest class minus distance to the data as a whole.

Better than ``Mahalanobis`` for inputs near the training classes, because directions that say
nothing about classes cancel.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final, get_args

from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer
from sonde.core.statistic import Statistic
from sonde.detect.mahalanobis import MahalanobisScorer, class_scorer, gaussian_scorer
from sonde.stats import ClassMoments, ClassMomentsState
from sonde.stats.scatter import AnyScatter, is_frugal
from sonde.stats.shrinkage import Shrinkage, check_shrinkage


@final
@dataclass(frozen=True, kw_only=True)
class RelativeMahalanobisScorer(Scorer):
    """Score of ``nearest`` (the classes) minus that of ``background`` (all rows)."""

    nearest: MahalanobisScorer
    background: MahalanobisScorer

    @property
    def labels(self) -> Int[Tensor, "class"]:
        """The class of each mean."""
        return self.nearest.labels

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the difference of two squared distances; non-finite rows get +inf."""
        near = self.nearest.score(x)
        return near.where(near.isinf(), near - self.background.score(x))

    @property
    def needs_double(self) -> bool:
        """True if either distance needs float64."""
        return self.nearest.needs_double or self.background.needs_double

    def contributions(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return the drop of the difference without each unit; 0 where it increases."""
        drop = self.nearest.contributions(x) - self.background.contributions(x)
        return drop.clamp(min=0.0)


@final
@dataclass(frozen=True)
class RelativeMahalanobis(Detector):
    """Squared distance to the nearest class mean, minus that to the mean of all rows.

    A log-likelihood ratio of the class model against one normal for everything:
    ``min_c (x - m_c)^T S_W^-1 (x - m_c) - (x - m)^T S_T^-1 (x - m)`` with covariances within
    classes and in total.

    Range        (-inf, inf), dimensionless; higher = more unusual.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^3); O(dim^2) per row.
    Assumes      labels at fit time; the same state as ``Mahalanobis``.
    Differs      from the paper: shrinks both covariances.

    Parameters
    ----------
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity mixed into both covariances.
    scatter : {"auto", "full", "diag"}, default="auto"
        Whole covariances, or variances alone. "auto": whole up to 2,048 dimensions, above that
        variances.

    Examples
    --------
    >>> import torch
    >>> square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    >>> x = torch.cat([square, square + torch.tensor([10.0, 0.0])]).double()
    >>> scorer = RelativeMahalanobis(shrinkage=0.0).fit(x, [0] * 4 + [1] * 4)
    >>> scorer.score(torch.tensor([[3.0, 1.0]]).double()).round(decimals=6).tolist()
    [7.647059]

    References
    ----------
    ren2021simple
    """

    shrinkage: Shrinkage = "oas"
    scatter: AnyScatter = "auto"
    paper: ClassVar[str] = "ren2021simple"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"shrinkage": 0.1}, {"scatter": "diag"})

    def __post_init__(self) -> None:
        check_shrinkage("RelativeMahalanobis", self.shrinkage)
        check_ranges(self, scatter=get_args(AnyScatter))

    def at_width(self, dim: int) -> "RelativeMahalanobis":
        """Return itself, or a variance-only version for rows too wide for a full covariance."""
        return replace(self, scatter="diag") if is_frugal(self.scatter, dim) else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the moments of each class."""
        return {"by_class": ClassMoments("diag" if self.scatter == "diag" else "pooled")}

    def result(self, by_class: ClassMomentsState) -> RelativeMahalanobisScorer:
        """Build both distance scorers from one state."""
        if len(by_class.labels) == 0:
            raise InputError(
                "RelativeMahalanobis: expected labels, got none. Pass labels, or use Mahalanobis."
            )
        if len(by_class.labels) == 1:
            raise InputError(
                "RelativeMahalanobis: expected at least two classes, got 1: its score would be 0 "
                "for every row. Check the label column, or use Mahalanobis."
            )
        nearest = class_scorer(by_class, self.shrinkage)
        background = gaussian_scorer(by_class.total, self.shrinkage, outside=False)
        return RelativeMahalanobisScorer(
            value=nearest.value - background.value,
            n=nearest.n,
            flags=nearest.flags,
            conventions={**nearest.conventions, "value": "difference of the two mean distances"},
            nearest=nearest,
            background=background,
        )
