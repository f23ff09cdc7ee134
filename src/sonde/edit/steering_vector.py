"""One direction that strengthens or weakens a behaviour when it is added.

Use it where two data sets show the behaviour and its absence. To remove what can be read off the
states use an eraser; to remove what the model does, ``DirectionalAblation``.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.edit import Add
from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.edit._directions import Direction, all_pairs, leading, require_direction
from sonde.stats import ClassMoments, ClassMomentsState, Moments, MomentsState, TwoGroups
from sonde.stats.scatter import AnyScatter, is_frugal
from sonde.stats.shrinkage import Shrinkage, check_shrinkage, inverse_root

How = Literal["mean_difference", "pca_difference", "probe"]


@final
@dataclass(frozen=True, kw_only=True)
class SteeringDirection(Result):
    """A direction towards the positive class, and the standard deviation of rows along it.

    ``vector`` has unit length; ``value`` is the distance of both sides' means along it, in spreads:
    an edit of that strength moves the one mean onto the other.
    """

    title: ClassVar[str] = "Distance along the direction"
    vector: Float[Tensor, "dim"]
    spread: float

    def edit(self, strength: float = 1.0) -> Add:
        """Return the edit that adds the direction, ``strength`` standard deviations long.

        Raises
        ------
        InputError
            If no direction was found.
        """
        require_direction("SteeringDirection.edit", self.vector * self.spread)
        return Add(self.vector * self.spread, strength)


@final
@dataclass(frozen=True)
class SteeringVector(Instrument):
    """Direction from the states of one class to those of another, for use as an edit.

    ``mean_difference``: from the mean of all other rows to that of class ``positive``.
    ``pca_difference``: the first principal axis of the differences between a row of the class and
    one of the others, not centred: centring would take away the very shift that is looked for.
    ``probe``: the normal ``S^-1 (m_1 - m_0)`` of linear discriminant analysis, which turns away
    from what varies within the classes. Each has unit length and points at the class.

    Range        [0, inf), spreads of all rows along the direction; higher = further apart.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes, 8 classes dim^2 for
                 ``pca_difference``; result O(dim^3) but for ``mean_difference``.
    Assumes      labels, or for ``paired`` columns ``pair`` and ``side``; all classes but
                 ``positive`` are one side.
    Differs      from the papers: the length is that of the rows' own spread, so one strength means
                 the same at every site; the sign is that of the mean difference; without pairs the
                 differences of all rows with all others are taken, in closed form. The axis of rows
                 less the midpoint of their pair ("pca_center" elsewhere) is ``pca_difference``.

    Parameters
    ----------
    how : {"mean_difference", "pca_difference", "probe"}, default="mean_difference"
        How the direction is found: from the classes' means, from the principal axis of their
        differences, or from the normal of a linear probe.
    positive : int, default=1
        The class, or with ``paired`` the side, that a positive strength makes more of.
    paired : bool, default=False
        Take the differences between the two members of each pair. For ``pca_difference``.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity mixed into the covariance of ``probe``.
    scatter : {"auto", "full", "diag"}, default="auto"
        The whole covariance, or variances alone: then the spread takes no account of covariances.
        "auto": whole up to 2,048 dimensions, above that variances.

    Examples
    --------
    >>> found = SteeringVector().fit([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]], [0, 0, 1, 1])
    >>> found.vector.tolist(), found.spread, found.value
    ([1.0, 0.0], 2.0, 2.0)

    References
    ----------
    rimsky2024caa, zou2023representation
    """

    how: How = "mean_difference"
    positive: int = 1
    paired: bool = False
    shrinkage: Shrinkage = "oas"
    scatter: AnyScatter = "auto"
    paper: ClassVar[str] = "rimsky2024caa"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"how": "probe", "scatter": "diag"},
        {"how": "pca_difference", "positive": 0},
        {"how": "pca_difference", "paired": True},
    )

    def __post_init__(self) -> None:
        check_shrinkage("SteeringVector", self.shrinkage)
        check_ranges(self, scatter=get_args(AnyScatter))
        if self.how not in get_args(How):
            words = ", ".join(map(repr, get_args(How)))
            raise InputError(f"SteeringVector: expected how among {words}, got {self.how!r}.")
        if self.how == "pca_difference" and self.scatter == "diag":
            raise InputError(
                "SteeringVector: expected the whole scatter for how='pca_difference', got "
                "'diag', which has no principal directions. Pass how='mean_difference'."
            )
        if self.paired and self.how != "pca_difference":
            raise InputError(
                f"SteeringVector: expected paired with how='pca_difference', got {self.how!r}: the "
                "mean of the differences of pairs is the difference of the means. Leave paired out."
            )

    def at_width(self, dim: int) -> "SteeringVector":
        """Return the method with only variances if rows are too wide for a full covariance."""
        frugal = is_frugal(self.scatter, dim) and self.how != "pca_difference"
        return replace(self, scatter="diag") if frugal else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class, or of the differences of pairs and of all rows."""
        if self.paired:
            return {"differences": PairDifferences(self.positive), "moments": Moments()}
        if self.how == "pca_difference":
            return {"by_class": ClassMoments("full")}
        return {"by_class": ClassMoments("diag" if self.scatter == "diag" else "pooled")}

    def result(
        self,
        by_class: ClassMomentsState | None = None,
        differences: "PairDifferencesState | None" = None,
        moments: MomentsState | None = None,
    ) -> SteeringDirection:
        """Find the axis, choose its sign, and measure the rows along it."""
        if differences is not None and moments is not None:
            pairs = differences.required("SteeringVector", self.positive)
            axis, gap, covariance = leading(pairs.second), pairs.total / pairs.n, moments.covariance
            return self._found(Direction.along(axis, gap, covariance), moments.n, (), pairs=pairs.n)
        assert by_class is not None  # what ``reads`` asked for
        groups = TwoGroups.of("SteeringVector", by_class, self.positive)
        axis = groups.gap
        conventions: dict[str, Any] = {}
        if self.how == "pca_difference":
            axis = leading(all_pairs(by_class, groups, self.positive))
        elif self.how == "probe":
            metric = inverse_root(groups.within, groups.n_rows, self.shrinkage)
            root = metric.root
            axis = root.square() * axis if root.ndim == 1 else root @ (root.T @ axis)
            conventions["shrinkage"] = metric.shrinkage
        direction = Direction.along(axis, groups.gap, by_class.total.covariance.detach())
        return self._found(direction, groups.n_rows, groups.flags, **conventions)

    def _found(
        self, found: Direction, n: int, flags: tuple[str, ...], **said: Any
    ) -> SteeringDirection:
        return SteeringDirection(
            value=found.gap / found.spread if found.spread > 0 else float("nan"),
            n=n,
            unit="standard deviations of all rows along the direction",
            direction="higher",
            range=(0.0, float("inf")),
            flags=flags if found.spread > 0 else (*flags, "dead"),
            conventions={
                "value": "distance of both means along the direction",
                "how": self.how,
                "positive": self.positive,
                "divisor": "n",
                "se": "a direction has no standard error: evaluate the edit's effect",
                **said,
            },
            vector=found.unit,
            spread=found.spread,
        )


@dataclass(frozen=True)
class PairDifferencesState(State):
    """Sum ``total`` and sum of outer products ``second`` of the differences of ``n`` pairs."""

    n: int
    total: Float[Tensor, "dim"]
    second: Float[Tensor, "dim dim"]

    def required(self, owner: str, positive: int) -> "PairDifferencesState":
        """Return the state after a check that it contains a pair.

        Raises
        ------
        InputError
            If no pair has a row on both sides.
        """
        if self.n:
            return self
        raise InputError(
            f"{owner}: expected pairs with one row on side {positive} and one row on another "
            "side, got none. Pass columns pair and side, or leave paired out."
        )


@final
@dataclass(frozen=True)
class PairDifferences(Statistic[PairDifferencesState]):
    """Moments about zero of the differences between the sides of each pair. Exact.

    Several rows of one side count by their mean; pairs that lack a side are left out.

    Parameters
    ----------
    positive : int
        The side from which the others are subtracted.
    """

    positive: int
    whole_groups: ClassVar[bool] = True

    def observe(
        self, x: Float[Tensor, "row dim"], pair: Int[Tensor, "row"], side: Int[Tensor, "row"]
    ) -> PairDifferencesState:
        """Return the sums over the pairs of a batch."""
        is_known = side.to(x.device) >= 0
        wide, ahead = x.double()[is_known], (side.to(x.device) == self.positive)[is_known]
        names, member = torch.unique(pair.to(x.device)[is_known], return_inverse=True)
        sums = wide.new_zeros(2, len(names), x.shape[1])
        counts = wide.new_zeros(2, len(names))
        sums.index_put_((ahead.long(), member), wide, accumulate=True)
        counts.index_put_((ahead.long(), member), wide.new_ones(len(wide)), accumulate=True)
        whole = (counts > 0).all(0)
        means = sums[:, whole] / counts[:, whole, None]
        gap = means[1] - means[0]
        return PairDifferencesState(len(gap), gap.sum(0), gap.T @ gap)

    def merge(self, a: PairDifferencesState, b: PairDifferencesState) -> PairDifferencesState:
        """Return the sums over the pairs of both states."""
        return PairDifferencesState(a.n + b.n, a.total + b.total, a.second + b.second)
