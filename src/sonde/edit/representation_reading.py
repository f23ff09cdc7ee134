"""Read a concept from states along a direction, and write it: by a shift, or other runs.

Use it where the concept itself is to be scored token by token. If only the push matters,
``SteeringVector`` does the same more simply; for classes at one place a probe is stronger.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Add, Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Detector, NotLabelled, Where
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import Site
from sonde.core.statistic import Statistic
from sonde.edit._directions import Direction, all_pairs, leading, require_direction
from sonde.stats import ClassMoments, ClassMomentsState, TwoGroups


@final
@dataclass(frozen=True, eq=False)
class Amplify(Edit):
    """Push each state further from a plane, to the side on which it lies.

    ``x + strength sign((x - origin) . d) d``; a state on the plane stays where it is.

    Parameters
    ----------
    direction : Float[Tensor, "dim"]
        Normal of the plane; its length is the length of a push.
    origin : Float[Tensor, "dim"]
        A point of the plane.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.
    """

    direction: Float[Tensor, "dim"]
    origin: Float[Tensor, "dim"]
    strength: float = 1.0
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"direction": torch.tensor([1.0, 0.0, -2.0, 0.5]), "origin": torch.ones(4)},
    )

    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return the shifted states."""
        if self.strength == 0.0:
            return x
        direction = self.direction.to(x)
        side = ((x - self.origin.to(x)) @ direction).sign().unsqueeze(-1)
        return x + self.strength * side * direction


@final
@dataclass(frozen=True)
class ContrastVector(Edit):
    """Add the difference between an example's states in two other runs.

    Two prompts that differ only in the concept replace a fitted direction.

    Cost         the two other runs.
    Assumes      ``EditContext.others`` holds both, place by place.

    Parameters
    ----------
    positive, negative : str
        Names of the other runs.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.

    Examples
    --------
    >>> others = {"positive": torch.tensor([[5.0]]), "negative": torch.tensor([[2.0]])}
    >>> edit = ContrastVector()
    >>> edit.apply(torch.tensor([[1.0]]), Site("0"), EditContext(others=others)).tolist()
    [[4.0]]

    References
    ----------
    zou2023representation
    """

    positive: str = "positive"
    negative: str = "negative"
    strength: float = 1.0

    def apply(
        self, x: Float[Tensor, "example *places dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "example *places dim"]:
        """Return ``x + strength (positive - negative)``."""
        if self.strength == 0.0:
            return x
        runs: list[Tensor] = []
        for name in (self.positive, self.negative):
            if name not in context.others:
                raise InputError(
                    f"ContrastVector: expected states of the run {name!r} at {site}, got "
                    f"{sorted(context.others) or 'none'}. Give them to sonde.editing(others=...)."
                )
            if context.others[name].shape != x.shape:
                raise ShapeError(
                    f"ContrastVector: expected a run {name!r} of shape {tuple(x.shape)}, got "
                    f"{tuple(context.others[name].shape)} at {site}. The runs are aligned "
                    "position by position."
                )
            runs.append(context.others[name].to(x))
        return x + self.strength * (runs[0] - runs[1])


@final
@dataclass(frozen=True, kw_only=True)
class ReadingScorer(Scorer):
    """Projection ``(x - origin) . vector / spread`` of each row on the concept's direction.

    ``vector`` has unit length, ``origin`` is the mean of all rows and ``spread`` their standard
    deviation along it; ``value`` is how far the means of both sides lie apart, in spreads.
    """

    vector: Float[Tensor, "dim"]
    origin: Float[Tensor, "dim"]
    spread: float
    positive: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the standardised projection of each row, higher if the concept is present."""
        if x.shape[1] != len(self.vector):
            raise ShapeError(
                f"RepresentationReading.score: expected dim={len(self.vector)} (as fitted), got "
                f"dim={x.shape[1]}. Fit a second scorer for that site."
            )
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        along = (wide - self.origin.to(wide)) @ self.vector.to(wide)
        scale = self.spread if self.spread > 0 else 1.0
        return infinite_where_nonfinite(along / scale, x)

    def edit(self, strength: float = 1.0, *, piecewise: bool = False) -> Add | Amplify:
        """Return the edit that adds the concept, or that pushes each state further to its side.

        Parameters
        ----------
        strength : float, default=1.0
            In spreads.
        piecewise : bool, default=False
            Push each state to the side on which it lies.
        """
        direction = self.vector * self.spread
        require_direction("ReadingScorer.edit", direction)
        return Amplify(direction, self.origin, strength) if piecewise else Add(direction, strength)


@final
@dataclass(frozen=True)
class RepresentationReading(Detector):
    """Score of a concept: projection of each row on the main axis of pair differences.

    Read rows with the concept (class ``positive``) and without it at the last token of one
    template. The direction is the first principal axis, not centred, of the differences of every
    row of one side with every row of the other: the limit of many random pairs.

    Range        (-inf, inf), spreads of all rows; higher = more of the concept, 0 = the mean row.
    Cost         one pass; state 8 classes dim^2 bytes; result O(dim^3); O(dim) per row.
    Assumes      labels; all classes but ``positive`` are one side.
    Differs      from the paper: all pairs in closed form in place of random ones; the sign is that
                 of the mean difference; the push to either side starts from the mean row.

    Parameters
    ----------
    positive : int, default=1
        The class that shows the concept.

    Examples
    --------
    >>> scorer = RepresentationReading().fit([[0.0, 0], [0, 1], [4, 0], [4, 1]], [0, 0, 1, 1])
    >>> scorer.score(torch.tensor([[2.0, 0.5], [4.0, 0.5]])).tolist()
    [0.0, 1.0]

    References
    ----------
    zou2023representation
    """

    positive: int = 1
    paper: ClassVar[str] = "zou2023representation"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"positive": 0})

    @property
    def usual(self) -> Where:
        """Filter of rows that are not labelled ``positive``."""
        return NotLabelled(self.positive)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class."""
        return {"by_class": ClassMoments("full")}

    def result(self, by_class: ClassMomentsState) -> ReadingScorer:
        """Compute the main axis of all differences."""
        groups = TwoGroups.of("RepresentationReading", by_class, self.positive)
        total = by_class.total
        axis = leading(all_pairs(by_class, groups, self.positive))
        direction = Direction.along(axis, groups.gap, total.covariance.detach())
        return ReadingScorer(
            value=direction.gap / direction.spread if direction.spread > 0 else float("nan"),
            n=groups.n_rows,
            unit="standard deviations of all rows along the direction",
            flags=groups.flags if direction.spread > 0 else (*groups.flags, "dead"),
            conventions={
                "value": "distance of both means along the direction",
                "positive": self.positive,
                "divisor": "n",
                "se": "not given for a scorer: calibrate its scores",
            },
            vector=direction.unit,
            origin=total.mean.detach(),
            spread=direction.spread,
            positive=self.positive,
        )
