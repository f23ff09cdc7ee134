"""Distance to the nearest class mean in the metric of the shared covariance.

The baseline for feature detectors: one pass, no bank of rows, exact merging.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import WhitenedPoints, check_fitted_width
from sonde.stats import ClassMoments, ClassMomentsState, Moments, MomentsState
from sonde.stats.scatter import AnyScatter, is_frugal
from sonde.stats.shrinkage import Shrinkage, check_shrinkage, inverse_root


@final
@dataclass(frozen=True, kw_only=True)
class MahalanobisScorer(Scorer):
    """Squared distance to the nearest mean; ``value`` averages it over the fitted rows' own class.

    ``mean`` has one row for each class in ``labels``, or one for all rows; ``rank`` counts the
    directions in which the fitted rows vary.
    """

    mean: Float[Tensor, "class dim"]
    labels: Int[Tensor, "class"]
    space: WhitenedPoints
    shrinkage: float
    rank: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the squared distance of each row to the nearest mean."""
        check_fitted_width("Mahalanobis", x, self.mean.shape[1])
        return infinite_where_nonfinite(self.space.nearest(x), x)

    @property
    def needs_double(self) -> bool:
        """True if float32 would lose visible digits of the distances."""
        return self.space.metric.is_lossy

    @property
    def squared_distance(self) -> tuple[Tensor, Tensor] | None:
        """Mean and root of the metric, or None unless one class, full and exact in float32."""
        root = self.space.metric.root
        alone = len(self.mean) == 1 and root.ndim == 2
        return (self.mean[0], root) if alone and not self.needs_double else None

    def contributions(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return the drop of the squared distance without each unit."""
        check_fitted_width("Mahalanobis", x, self.mean.shape[1])
        return self.space.drops(x)

    def null_energy(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return each row's energy fraction in directions without variance in the fitted rows."""
        return self.space.metric.null_energy(x.double() - self.space.origin)


@final
@dataclass(frozen=True)
class Mahalanobis(Detector):
    """Squared distance of each row to its nearest class mean, in the shared covariance's metric.

    Classes are taken as clouds of one shape around their means; without labels there is one cloud.
    ``min_c (x - m_c)^T S^-1 (x - m_c)``. For a fresh row of a normal class the distance to its own
    mean is chi-squared with ``dim`` degrees of freedom. If more rows than dimensions leave a
    direction without variance (a unit never changes, or copies another unit), the direction counts
    as having the largest variance that rounding could hide. A row that differs along this direction
    then scores far above all others.

    Range        [0, inf), dimensionless; higher = more unusual.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^3); O(dim^2) per row.
                 With ``diag`` dim in place of dim^2 and dim^3.
    Assumes      labels known at fit time or none at all; rows with label -1 beside labelled ones
                 are left out (flag ``unlabelled``).
    Differs      from the paper: no input perturbation, no learned sum over layers.

    Parameters
    ----------
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity mixed into the covariance; "oas" estimates it.
    classes : bool, default=True
        Whether each label has a mean of its own; without labels, or if False, all rows have one
        mean.
    scatter : {"auto", "full", "diag"}, default="auto"
        The whole covariance, or variances alone. "auto": whole up to 2,048 dimensions, above that
        variances.

    Examples
    --------
    >>> x = [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]]
    >>> scorer = Mahalanobis(shrinkage=0.0).fit(x)
    >>> scorer.score(torch.tensor([[1.0, 0.0], [3.0, 1.0]])).round(decimals=3).tolist()
    [0.0, 10.0]

    References
    ----------
    lee2018simple, chen2010oas
    """

    shrinkage: Shrinkage = "oas"
    classes: bool = True
    scatter: AnyScatter = "auto"
    paper: ClassVar[str] = "lee2018simple"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"shrinkage": 0.1, "classes": False},
        {"scatter": "diag"},
    )

    def __post_init__(self) -> None:
        check_shrinkage("Mahalanobis", self.shrinkage)
        check_ranges(self, scatter=get_args(AnyScatter))

    def at_width(self, dim: int) -> "Mahalanobis":
        """Return itself, or a variance-only version for rows too wide for a full covariance."""
        return replace(self, scatter="diag") if is_frugal(self.scatter, dim) else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the moments of each class, or of all rows."""
        if not self.classes:
            return {"moments": Moments("diag" if self.scatter == "diag" else "full")}
        return {"by_class": ClassMoments("diag" if self.scatter == "diag" else "pooled")}

    def result(
        self, by_class: ClassMomentsState | None = None, moments: MomentsState | None = None
    ) -> MahalanobisScorer:
        """Whiten the class means."""
        if by_class is not None and len(by_class.labels) > 0:
            return class_scorer(by_class, self.shrinkage)
        return gaussian_scorer(by_class.total if by_class is not None else moments, self.shrinkage)


def class_scorer(classes: ClassMomentsState, shrinkage: Shrinkage) -> MahalanobisScorer:
    """Return the scorer of the distance to the nearest class mean, by within-class scatter."""
    flags = ["unlabelled"] if classes.unlabelled is not None else []
    mean, n = classes.mean.detach(), classes.n_labelled
    origin = classes.grand_mean.detach()
    return _scorer(mean, classes.labels, origin, classes.pooled.detach(), n, shrinkage, flags)


def gaussian_scorer(
    moments: MomentsState | None, shrinkage: Shrinkage, outside: bool = True
) -> MahalanobisScorer:
    """Return the scorer of the distance to the mean of all rows, by their covariance.

    ``outside`` also measures directions without variance.
    """
    assert moments is not None  # one of the two states is always read
    mean = moments.mean.detach()
    labels = torch.full((1,), -1, dtype=torch.int64)
    scatter = moments.scatter.detach()
    return _scorer(mean[None], labels, mean, scatter, moments.n, shrinkage, [], outside)


def _scorer(
    mean: Float[Tensor, "class dim"],
    labels: Int[Tensor, "class"],
    origin: Float[Tensor, "dim"],
    scatter: Float[Tensor, "dim dim"] | Float[Tensor, "dim"],
    n: int,
    shrinkage: Shrinkage,
    flags: list[str],
    outside: bool = True,
) -> MahalanobisScorer:
    if n < 2:
        raise StateError(
            f"Mahalanobis: expected at least 2 rows to fit on, got {n}. Give more rows."
        )
    metric = inverse_root(scatter, n, shrinkage)
    dim = mean.shape[1]
    flags += ["dead"] if metric.rank == 0 else []
    flags += ["rank_deficient"] if 0 < metric.rank < dim else []
    flags += ["few_rows"] if n <= dim else []
    if scatter.ndim == 1:
        own = (metric.root.square() * scatter).sum() / n
    else:
        own = ((scatter @ metric.root) * metric.root).sum() / n
    outside = outside and 0 < metric.rank < min(dim, n - len(mean))  # not for lack of rows
    metric = metric.reaching_outside() if outside else metric
    return MahalanobisScorer(
        value=float(own),
        n=n,
        range=(0.0, float("inf")),
        flags=tuple(flags),
        conventions={
            "value": "mean squared distance of the fitted rows to the mean of their own class",
            "classes": len(mean),
            "covariance": "variances alone" if scatter.ndim == 1 else "whole",
            "without_variance": "measured by rounding" if outside else "left out",
            "divisor": "n",
            "se": "not given for a scorer: calibrate its scores",
        },
        mean=mean,
        labels=labels,
        space=WhitenedPoints.of(metric, origin, mean),
        shrinkage=metric.shrinkage,
        rank=metric.rank,
    )
