"""Erasure of the directions that covary most with a concept, ignoring the rows' covariance."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.statistic import Statistic
from sonde.edit._eraser import FLOAT64, Eraser, Joint
from sonde.stats import ClassMoments, ClassMomentsState


@final
@dataclass(frozen=True)
class Sal(Instrument):
    """Orthogonal projection off the directions that covary most with the classes (SAL).

    The left singular vectors of the cross-covariance of rows and classes. With all of them the
    classes are erased from linear readers as by ``Leace``, at a larger change: this is its
    orthogonal form. With fewer, the strongest go.

    Range        [0, 1], mean squared change over total variance; higher = more is changed.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim classes^2).
    Assumes      two classes or more; rows without a label are left out (flag ``unlabelled``).
    Differs      from the paper: the mean of the rows stays where it is; rare classes weigh by the
                 root of their share, not by their share.

    Parameters
    ----------
    rank : int or None, default=None
        Directions that are removed; None: all.

    Examples
    --------
    >>> eraser = Sal().fit([[0.0, 0.0], [2.0, 2.0], [4.0, 0.0], [6.0, 2.0]], [0, 0, 1, 1])
    >>> round(eraser.value, 6), eraser.rank
    (0.833333, 1)

    References
    ----------
    shao2023sal
    """

    rank: int | None = None
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "shao2023sal"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"rank": 1})

    def __post_init__(self) -> None:
        check_ranges(self, rank=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class."""
        return {"by_class": ClassMoments()}

    def result(self, by_class: ClassMomentsState) -> Eraser:
        """Compute the singular vectors of the cross-covariance."""
        joint = Joint.of_classes("Sal", by_class, FLOAT64)
        u, _, _ = joint.directions(most=self.rank)
        return joint.eraser(u, u)
