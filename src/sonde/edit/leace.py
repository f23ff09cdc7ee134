"""The smallest affine change that removes a concept from all linear predictors.

It guards against linear readers only, on the rows that it was fitted on: look at a two-layer probe
beside it (``probe_accuracy``). Where several layers are erased, fit each on states that are already
edited below it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.statistic import Span, Statistic
from sonde.edit._eraser import FLOAT32, FLOAT64, Eraser, Joint
from sonde.stats import (
    ClassMoments,
    ClassMomentsState,
    CrossMoments,
    CrossMomentsState,
    Moments,
    MomentsState,
    solve_normal_equations,
)
from sonde.stats.class_moments import Products
from sonde.stats.shrinkage import Shrinkage, check_shrinkage


@final
@dataclass(frozen=True)
class Leace(Instrument):
    """Erasure of the classes from the rows of a site, with the least change (LEACE).

    ``r(x) = x - W^+ P W (x - mean)`` with ``W`` the inverse root of the covariance of the rows and
    ``P`` the orthogonal projector on the columns of ``W S_xz``. Afterwards rows and classes are
    uncorrelated, so no linear predictor of the class beats a constant; of all affine maps that do
    this it moves the rows least, in every metric. ``result.edit()`` is the edit; ``result.oracle``
    the smaller edit for known classes. The form without a metric is ``Sal``.

    Range        [0, 1], mean squared change over total variance; higher = more is changed.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^3); 2 dim rank per row.
    Assumes      two classes or more; rows without a label are left out (flag ``unlabelled``).
    Differs      from the paper: all directions of the cross-covariance above its rounding error are
                 kept, so rare classes are erased too; correlations are shrunk, not the covariance,
                 so that the scales of the units do not matter.

    Parameters
    ----------
    products : {"fast", "exact"}, default="fast"
        How rows are multiplied, see ``ClassMoments``. The concept is erased to the digits of
        float64 either way; how little rows move agrees with the exact minimum to about 1e-6.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of zero correlations, mixed into those between units; "oas" estimates it.
        The classes are erased from the fitted rows at any weight, with the least change at 0; with
        few rows in many dimensions, a weight of 0 moves new rows by many standard deviations.

    Examples
    --------
    >>> x = [[0.0, 0.0], [2.0, 2.0], [4.0, 0.0], [6.0, 2.0]]
    >>> eraser = Leace(products="exact", shrinkage=0.0).fit(x, [0, 0, 1, 1])
    >>> round(eraser.value, 6)
    0.666667
    >>> import torch
    >>> from sonde.core import EditContext, Site
    >>> eraser.edit().apply(torch.tensor(x), Site("x"), EditContext()).tolist()
    [[2.0, 0.0], [4.0, 2.0], [2.0, 0.0], [4.0, 2.0]]

    References
    ----------
    belrose2023leace
    """

    products: Products = "fast"
    shrinkage: Shrinkage = "oas"
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "belrose2023leace"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"products": "exact", "shrinkage": 0.0},
    )

    def __post_init__(self) -> None:
        check_shrinkage("Leace", self.shrinkage)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class."""
        return {"by_class": ClassMoments(products=self.products)}

    def result(self, by_class: ClassMomentsState) -> Eraser:
        """Compute the whitened cross-covariance's directions, and the eraser."""
        rounding = FLOAT32 if self.products == "fast" else FLOAT64
        return _least_change(Joint.of_classes("Leace", by_class, rounding), self.shrinkage)


@final
@dataclass(frozen=True)
class PairedLeace(Instrument):
    """Erasure of one site's numbers from the rows of another site, with the least change.

    As ``Leace``, for a concept that is no class: the rows of the second site (a position, a score,
    the states of another model). Numbers that never vary are left out.

    Range        [0, 1], mean squared change over total variance; higher = more is changed.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      the two sites have the same rows.

    Parameters
    ----------
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of zero correlations, mixed into those between units; "oas" estimates it.

    Examples
    --------
    >>> x = [[0.0, 0.0], [2.0, 2.0], [4.0, 0.0], [6.0, 2.0]]
    >>> round(PairedLeace(shrinkage=0.0).fit(x, y=[[0.0], [0.0], [1.0], [1.0]]).value, 6)
    0.666667

    References
    ----------
    belrose2023leace
    """

    shrinkage: Shrinkage = "oas"
    span: ClassVar[Span] = "pair"
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "belrose2023leace"

    def __post_init__(self) -> None:
        check_shrinkage("PairedLeace", self.shrinkage)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of both sites, and their cross moments."""
        return {"alone": Moments(), "together": CrossMoments()}

    def result(
        self, alone: tuple[MomentsState, MomentsState], together: CrossMomentsState
    ) -> Eraser:
        """Compute the whitened cross-covariance's directions, and the eraser."""
        rows, concept = alone
        spread = concept.variance.detach().clamp(min=0.0).sqrt()
        if not bool((spread > 0).any()):
            raise InputError(
                f"PairedLeace: expected a concept that varies, got {concept.n} equal rows at the "
                "second site. Name the site of the concept second."
            )
        cross = together.covariance.detach()
        slope = solve_normal_equations(concept.covariance.detach(), cross.T).T
        joint = Joint(
            rows.n,
            rows.mean.detach(),
            rows.covariance.detach(),
            cross / torch.where(spread > 0, spread, torch.inf),
            slope,
            ("few_rows",) if rows.n <= len(rows.mean) else (),
            concept_mean=concept.mean.detach(),
        )
        return _least_change(joint, self.shrinkage)


def _least_change(joint: Joint, shrinkage: Shrinkage) -> Eraser:
    root = joint.root(shrinkage)
    u, s, v = joint.directions(root)
    # left right^T maps the cross-covariance to itself whatever the root is: erasure is exact even
    # where the covariance is not.
    return joint.eraser(joint.cross @ v / s, root @ u)
