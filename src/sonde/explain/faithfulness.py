"""Test whether an attribution shows what the model uses, by removing positions.

Every figure comes beside that of random orders of the same places.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError
from sonde.core.explainer import Judge
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.explain._judging import judged_by, require_attribution, standard_error
from sonde.explain._places import ExamplePlaces
from sonde.explain.attribution import Attribution
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective, Objective
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction

PROB = Objective("prob")


@final
@dataclass(frozen=True, kw_only=True)
class FaithfulnessResult(Result):
    """Result for each example and on average, for the attribution and for random orders.

    ``null`` is the mean over random orders of the same places, ``null_spread`` the standard
    deviation of their means, ``null_each`` the figure of each order on each example. ``change`` is
    the objective after the last step less that after the first.
    """

    title: ClassVar[str] = "Objective as positions are removed"
    each: Float[Tensor, "row"]
    share: Float[Tensor, "step"]
    curve: Float[Tensor, "step"]
    null_curve: Float[Tensor, "step"]
    null_spread: float
    null_each: Float[Tensor, "order row"]
    change: Float[Tensor, "row"]

    def chart(self) -> Chart:
        """Return the curve of the attribution beside the curve of random orders."""
        rows = [
            {"share": s, "objective": v, "order": order}
            for order, curve in (("attribution", self.curve), ("random", self.null_curve))
            for s, v in zip(self.share.tolist(), curve.tolist(), strict=True)
        ]
        return curves(self.title, rows, "share", "objective", by="order")


@dataclass(frozen=True)
class OrderTest(Judge):
    """Judges an attribution by the order of its positions.

    Parameters
    ----------
    baseline : Baseline, optional
        What stands at a place that is taken away; by default zero, of pictures a
        blur.
    n_random : int, default=10
        Random orders beside the attribution's.
    seed : int, default=0
        Of the random orders, and of the order of places with equal attribution.
    """

    baseline: Baseline = field(default_factory=Baseline)
    n_random: int = 10
    seed: int = 0
    direction: ClassVar[Direction] = "higher"
    takes_first: ClassVar[bool] = True
    """Whether the first places of the order are taken away; else those after them."""

    def judge(
        self,
        model: Model | nn.Module,
        inputs: Any,
        explanation: Attribution,
        *,
        site: Pattern = INPUT,
        objective: Objective = PROB,
    ) -> FaithfulnessResult:
        """Return how well the order of an attribution predicts the effect of removing positions.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : as for the attribution
        explanation : Attribution
        site : pattern, default="input"
            Where places are taken away; it may be another site than the attribution's if both have
            the same places.
        objective : Objective, optional
            By default the probability of the class that is predicted for the whole input.
        """
        require_attribution(type(self).__name__, explanation)
        function = SiteFunction(model, inputs, site)
        fixed = objective.at(function)
        places = ExamplePlaces.of(function, self.baseline)
        curves = self._curves(function, fixed, places, places.scores(explanation), self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [
            torch.rand(1, places.n, generator=generator).to(places.x).expand(len(places.x), -1)
            for _ in range(self.n_random)
        ]
        nulls = [self._curves(function, fixed, places, s, self.seed) for s in drawn]
        each = self._figure(curves)
        null_each = each.new_zeros(0, len(each))
        if nulls:
            null_each = torch.stack([self._figure(c) for c in nulls])
        means = null_each.mean(1)
        null_curve = (
            torch.stack(nulls).mean((0, 1)) if nulls else torch.full_like(curves[0], torch.nan)
        )
        return FaithfulnessResult(
            value=float(each.mean()),
            se=standard_error(each),
            null=float(means.mean()) if nulls else None,
            n=len(each),
            direction=self.direction,
            conventions={
                **judged_by(self, self.baseline, function, explanation, fixed),
                "null": f"{self.n_random} random orders",
            },
            each=each,
            share=torch.tensor(self.shares, dtype=torch.float64),
            curve=curves.mean(0),
            null_curve=null_curve,
            null_spread=float(means.std()) if len(means) > 1 else float("nan"),
            null_each=null_each,
            change=curves[:, -1] - curves[:, 0],
        )

    @property
    @abstractmethod
    def shares(self) -> tuple[float, ...]:
        """Fractions of the positions that are removed, in increasing order."""

    @abstractmethod
    def _figure(self, curves: Float[Tensor, "row step"]) -> Float[Tensor, "row"]:
        """Return one number for each example."""

    @torch.no_grad()
    def _curves(
        self,
        function: SiteFunction,
        objective: FixedObjective,
        places: ExamplePlaces,
        scores: Float[Tensor, "row place"],
        seed: int,
    ) -> Float[Tensor, "row step"]:
        order = places.order(scores, seed)
        rank = order.argsort(1)
        n_real = places.real.sum(1, keepdim=True)
        steps: list[Tensor] = []
        for share in self.shares:
            first = rank < (share * n_real).round()
            values = places.without(first if self.takes_first else ~first)
            steps.append(objective.of(function.run(values)).detach().double().cpu())
        return torch.stack(steps, dim=1)


@dataclass(frozen=True)
class CurveTest(OrderTest):
    """An order test whose result is the area under the objective against the fraction of positions.

    Parameters
    ----------
    steps : int, default=20
        Equal shares of the places.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        check_ranges(self, steps=">= 1")

    @property
    def shares(self) -> tuple[float, ...]:
        """Fractions from 0 to 1, in equal steps."""
        return tuple(i / self.steps for i in range(self.steps + 1))

    def _figure(self, curves: Float[Tensor, "row step"]) -> Float[Tensor, "row"]:
        return torch.trapezoid(curves, dx=1.0 / self.steps, dim=1)


@final
@dataclass(frozen=True)
class Deletion(CurveTest):
    """Area under the objective while positions are removed, the largest attribution first.

    Range        of the objective, [0, 1] for a probability; lower = the attribution finds sooner
                 what the model uses.
    Cost         ``steps`` forwards, and as many for each random order.
    Assumes      that the model copes with places at the baseline.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of removed positions.
    n_random : int, default=10
        Number of random orders that give the null.
    seed : int, default=0
        Seed of the random orders.
    steps : int, default=20
        Number of steps in which all positions are removed.

    References
    ----------
    petsiuk2018rise
    """

    direction: ClassVar[Direction] = "lower"


@final
@dataclass(frozen=True)
class Insertion(CurveTest):
    """Area under the objective while positions are inserted, the largest attribution first.

    Range        of the objective, [0, 1] for a probability; higher = better.
    Cost         ``steps`` forwards, and as many for each random order.
    Assumes      that the model copes with places at the baseline.

    Parameters
    ----------
    baseline : Baseline, optional
        Values from which positions are inserted.
    n_random : int, default=10
        Number of random orders that give the null.
    seed : int, default=0
        Seed of the random orders.
    steps : int, default=20
        Number of steps in which all positions are inserted.

    References
    ----------
    petsiuk2018rise
    """

    takes_first: ClassVar[bool] = False


@dataclass(frozen=True)
class ShareTest(OrderTest):
    """An order test whose result is the mean fall of the objective over a few fractions.

    Parameters
    ----------
    parts : tuple of float, default=(0.01, 0.05, 0.1, 0.2, 0.5)
        Shares of the places.
    """

    parts: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)

    def __post_init__(self) -> None:
        if not self.parts or not all(0.0 < p <= 1.0 for p in self.parts):
            raise InputError(
                f"{type(self).__name__}: expected fractions in (0, 1], got {self.parts}."
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The whole input, then each share."""
        return (0.0, *self.parts)

    def _figure(self, curves: Float[Tensor, "row step"]) -> Float[Tensor, "row"]:
        return (curves[:, :1] - curves[:, 1:]).mean(1)


@final
@dataclass(frozen=True)
class Comprehensiveness(ShareTest):
    """Fall of the objective when the positions with the largest attribution are removed.

    Range        of the objective; higher = what was pointed at is needed.
    Cost         a forward for each share, and as many for each random order.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of removed positions.
    n_random : int, default=10
        Number of random orders that give the null.
    seed : int, default=0
        Seed of the random orders.
    parts : tuple of float
        Fractions of the positions that are removed, in (0, 1].

    References
    ----------
    deyoung2020eraser
    """


@final
@dataclass(frozen=True)
class Sufficiency(ShareTest):
    """Fall of the objective when only the positions with the largest attribution are kept.

    Range        of the objective; lower = what was pointed at is enough.
    Cost         a forward for each share, and as many for each random order.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of removed positions.
    n_random : int, default=10
        Number of random orders that give the null.
    seed : int, default=0
        Seed of the random orders.
    parts : tuple of float
        Fractions of the positions that are kept, in (0, 1].

    References
    ----------
    deyoung2020eraser
    """

    direction: ClassVar[Direction] = "lower"
    takes_first: ClassVar[bool] = False

    @property
    def shares(self) -> tuple[float, ...]:
        """The fraction 0, then each fraction of ``parts``."""
        return (1.0, *self.parts)
