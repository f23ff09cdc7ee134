"""Test whether the attributions of a set of positions predict the fall of the objective.

``SensitivityN`` asks for the correlation, which bears any scale; ``Infidelity`` for the squared
error, which does not, and reports the best scale beside it.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError
from sonde.core.explainer import Judge
from sonde.core.inputs import Model
from sonde.core.renaming import renamed
from sonde.core.result import Result
from sonde.explain._correlation import pearson
from sonde.explain._judging import judged_by, require_attribution, standard_error
from sonde.explain._places import ExamplePlaces
from sonde.explain.attribution import Attribution
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective, Objective
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction

LOGIT = Objective()


@final
@dataclass(frozen=True, kw_only=True)
class SensitivityResult(Result):
    """Correlation over sets of positions, and ``by_share`` for each size of the sets."""

    title: ClassVar[str] = (
        "Correlation of attribution and drop of the objective, by the size of the set"
    )
    share: Float[Tensor, "share"]
    by_share: Float[Tensor, "share"]

    def chart(self) -> Chart:
        """Return the correlation by the fraction of the positions that a set removes."""
        pairs = zip(self.share.tolist(), self.by_share.tolist(), strict=True)
        rows = [{"share": share, "correlation": value} for share, value in pairs]
        return curves(self.title, rows, "share", "correlation")


@final
@dataclass(frozen=True, kw_only=True)
class InfidelityResult(Result):
    """Mean squared error, ``each`` example's error, and the ``scale`` that minimises the error.

    ``scaled`` is the error left after each example's attribution is multiplied by its ``scale``.
    """

    title: ClassVar[str] = "Squared error of the attribution of sets of positions"
    each: Float[Tensor, "row"]
    scale: Float[Tensor, "row"]
    scaled: float


ResultT = TypeVar("ResultT", SensitivityResult, InfidelityResult)


@dataclass(frozen=True)
class SetTest(Judge, Generic[ResultT]):
    """Removes random sets of positions, and compares the fall with the sum of their attributions.

    Parameters
    ----------
    baseline : Baseline, optional
        Values at removed positions: zero by default, and a blurred copy for pictures.
    n_sets : int, default=100
        Number of random sets of each size, at least 2.
    remove : tuple of float, default=(0.1, 0.3, 0.5, 0.7, 0.9)
        Fractions of the positions that a set removes, each in (0, 1).
    seed : int, default=0
    """

    baseline: Baseline = field(default_factory=Baseline)
    n_sets: int = 100
    remove: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_sets < 2 or not self.remove or not all(0.0 < s < 1.0 for s in self.remove):
            raise InputError(
                f"{type(self).__name__}: expected two sets or more and fractions in (0, 1), got "
                f"{self.n_sets} and {self.remove}."
            )

    def judge(
        self,
        model: Model | nn.Module,
        inputs: Any,
        explanation: Attribution,
        *,
        site: Pattern = INPUT,
        objective: Objective = LOGIT,
    ) -> ResultT:
        """Return the mean over examples, sets and fractions.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : as for the attribution
        explanation : Attribution
        site : pattern, default="input"
            Where places are taken away.
        objective : Objective, optional
            By default the logit of the class that is predicted for the whole input.
        """
        require_attribution(type(self).__name__, explanation)
        function = SiteFunction(model, inputs, site)
        fixed = objective.at(function)
        predicted, fell = self._drawn(function, explanation, fixed)
        comparison = judged_by(self, self.baseline, function, explanation, fixed)
        return self._result(predicted, fell, comparison)

    @abstractmethod
    def _result(
        self,
        predicted: Float[Tensor, "share row set"],
        fell: Float[Tensor, "share row set"],
        conventions: dict[str, Any],
    ) -> ResultT:
        """Return the result from the sums of attributions and the falls of the objective."""

    def _drawn(
        self, function: SiteFunction, found: Attribution, fixed: FixedObjective
    ) -> tuple[Float[Tensor, "share row set"], Float[Tensor, "share row set"]]:
        """Return the summed attribution of each random set, and the fall of the objective."""
        places = ExamplePlaces.of(function, self.baseline)
        scores = (places.scores(found) * places.real).double().cpu()
        whole = fixed.of(function.outputs).detach().double().cpu()
        generator = torch.Generator().manual_seed(self.seed)
        predicted, fell = [], []
        for share in self.remove:
            count = min(max(1, round(share * places.n)), places.n - 1)
            order = torch.rand(self.n_sets, places.n, generator=generator).argsort(1)
            gone = torch.zeros(self.n_sets, places.n, dtype=torch.bool)
            gone.scatter_(1, order[:, :count], True)
            predicted.append(scores @ gone.double().T)
            fell.append(whole[:, None] - places.number_of_sets(function, fixed, ~gone))
        return torch.stack(predicted), torch.stack(fell)


@renamed(remove="shares")
@final
@dataclass(frozen=True)
class SensitivityN(SetTest[SensitivityResult]):
    """Correlation of the summed attributions of n positions with the fall of the objective.

    Range        [-1, 1]; higher = better; 1 for every n where the model is linear and the
                 attribution right.
    Cost         ``n_sets`` forwards for each share.
    Assumes      attributions in units of the objective, or of any multiple of it; that the model
                 copes with places at the baseline.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of removed positions.
    n_sets : int, default=100
        Number of random sets of positions.
    remove : tuple of float
        Fractions of the positions that a set holds.
    seed : int, default=0
        Seed of the sets.

    Examples
    --------
    >>> from sonde.explain import GradTimesInput
    >>> net, x = nn.Linear(9, 2), torch.randn(4, 9)
    >>> found = GradTimesInput().explain(net, x)
    >>> round(SensitivityN(Baseline("zero"), n_sets=20).judge(net, x, found).value, 4)
    1.0

    References
    ----------
    ancona2018towards
    """

    paper: ClassVar[str] = "ancona2018towards"

    def _result(
        self, predicted: Tensor, fell: Tensor, conventions: dict[str, Any]
    ) -> SensitivityResult:
        by_row = torch.stack([pearson(a, b) for a, b in zip(predicted, fell, strict=True)])
        each = by_row.mean(0)
        return SensitivityResult(
            value=float(each.mean()),
            se=standard_error(each),
            null=0.0,
            n=len(each),
            range=(-1.0, 1.0),
            direction="higher",
            conventions=conventions,
            share=torch.tensor(self.remove, dtype=torch.float64),
            by_share=by_row.mean(1),
        )


@renamed(remove="shares")
@final
@dataclass(frozen=True)
class Infidelity(SetTest[InfidelityResult]):
    """Mean squared error between the attribution of a random set of positions and the fall.

    ``mean (sum_S a_i - (f(x) - f(x without S)))^2``.

    Range        [0, inf), objective squared; lower = better. ``null`` is that of attributions that
                 are all 0.
    Cost         ``n_sets`` forwards for each share.
    Assumes      attributions in units of the objective (``scaled`` bears others); that the model
                 copes with places at the baseline.
    Differs      from the paper's Gaussian steps: sets of places go to the baseline, as its second
                 kind of step; a gradient is judged as ``GradTimesInput``.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of removed positions.
    n_sets : int, default=100
        Number of random sets of positions.
    remove : tuple of float
        Fractions of the positions that a set holds.
    seed : int, default=0
        Seed of the sets.

    Examples
    --------
    >>> from sonde.explain import GradTimesInput
    >>> net, x = nn.Linear(9, 2), torch.randn(4, 9)
    >>> found = GradTimesInput().explain(net, x)
    >>> Infidelity(Baseline("zero"), n_sets=20).judge(net, x, found).value < 1e-10
    True

    References
    ----------
    yeh2019infidelity
    """

    paper: ClassVar[str] = "yeh2019infidelity"

    def _result(
        self, predicted: Tensor, fell: Tensor, conventions: dict[str, Any]
    ) -> InfidelityResult:
        predicted, fell = (x.transpose(0, 1).flatten(1) for x in (predicted, fell))
        each = (predicted - fell).square().mean(1)
        square = predicted.square().sum(1)
        scale = torch.where(square > 0, (predicted * fell).sum(1) / square.clamp(min=1e-300), 0.0)
        return InfidelityResult(
            value=float(each.mean()),
            se=standard_error(each),
            null=float(fell.square().mean()),
            n=len(each),
            unit="objective squared",
            range=(0.0, float("inf")),
            direction="lower",
            conventions=conventions,
            each=each,
            scale=scale,
            scaled=float((scale[:, None] * predicted - fell).square().mean()),
        )
