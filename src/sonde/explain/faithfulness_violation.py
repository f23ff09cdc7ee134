"""Test the signs of an attribution, by removing positions one at a time."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.explainer import Judge
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.explain._judging import judged_by, require_attribution
from sonde.explain._places import ExamplePlaces
from sonde.explain.attribution import Attribution
from sonde.explain.baseline import Baseline
from sonde.explain.faithfulness import PROB
from sonde.explain.objective import FixedObjective, Objective
from sonde.stats.intervals import clopper_pearson
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction


@final
@dataclass(frozen=True, kw_only=True)
class ViolationResult(Result):
    """Fraction of positions whose removal moves the objective against their attribution's sign.

    Counts are by rank of the absolute attribution. ``low`` and ``high`` are the exact 95 % interval
    of ``value``; ``without_ties`` leaves out places whose removal moves nothing; ``base_rate`` is
    the share of tested places whose removal raises the objective, which is the violation rate of an
    attribution that is always positive. ``wrong`` says of each example whether its first place
    violates, NaN where that place moves nothing.
    """

    title: ClassVar[str] = "Violations by rank"
    direction: Direction = "lower"
    violations: Int[Tensor, "rank"]
    ties: Int[Tensor, "rank"]
    trials: Int[Tensor, "rank"]
    low: float
    high: float
    without_ties: float
    base_rate: float
    wrong: Float[Tensor, "row"]


@final
@dataclass(frozen=True)
class FaithfulnessViolation(Judge):
    """Count positions whose removal moves the answer against the sign of their attribution.

    The positions with the largest absolute attribution are removed, one at a time.

    A place violates where ``sign(attribution) * sign(f(x) - f(x without it)) < 0``, with the
    objective's target fixed from the whole input. A change below ``tol`` is a tie, which never
    violates and is counted apart.

    Range        [0, 1]; lower = better, 0.5 = a coin.
    Cost         one forward for each place that is tested.
    Assumes      signed attributions; one that is never negative cannot say "against", so its rate
                 is ``base_rate`` (``conventions["signed"]`` says so).

    Parameters
    ----------
    k : int, default=1
        How many places of each example, by absolute attribution.
    baseline : Baseline, optional
        What stands at a place that is taken away; figures of two baselines do not compare.
    tol : float, default=1e-6
        Smallest change of the objective that is not a tie.
    seed : int, default=0
        Seed of the order of places with equal attribution.

    Examples
    --------
    >>> from sonde.explain import GradTimesInput
    >>> net, x = torch.nn.Linear(3, 2, bias=False), torch.randn(20, 3)
    >>> test = FaithfulnessViolation(baseline=Baseline("zero"))
    >>> test.judge(net, x, GradTimesInput().explain(net, x), objective=Objective()).value
    0.0

    References
    ----------
    liu2022fvt
    """

    k: int = 1
    baseline: Baseline = field(default_factory=Baseline)
    tol: float = 1e-6
    seed: int = 0
    paper: ClassVar[str] = "liu2022fvt"

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 1")

    @torch.no_grad()
    def judge(
        self,
        model: Model | nn.Module,
        inputs: Any,
        explanation: Attribution,
        *,
        site: Pattern = INPUT,
        objective: Objective = PROB,
    ) -> ViolationResult:
        """Return the fraction of wrong signs, by default for the probability of the prediction."""
        require_attribution("FaithfulnessViolation", explanation)
        function = SiteFunction(model, inputs, site)
        fixed = objective.at(function)
        places = ExamplePlaces.of(function, self.baseline)
        scores = places.scores(explanation)
        order = places.order(scores.abs(), self.seed)
        whole = fixed.of(function.outputs).double()
        counts = torch.zeros(3, min(self.k, places.n), dtype=torch.int64)
        n_raised, first = 0, torch.full((len(places.x),), torch.nan, dtype=torch.float64)
        for rank in range(counts.shape[1]):
            at = order[:, rank : rank + 1]
            tried = places.real.gather(1, at)[:, 0].cpu()
            gone = torch.zeros_like(places.real).scatter_(1, at, True)
            fall = (whole - fixed.of(function.run(places.without(gone))).double()).cpu()
            sign = scores.gather(1, at)[:, 0].sign().cpu()
            is_tie = fall.abs() < self.tol
            wrong = (sign * fall < 0) & ~is_tie
            for row, which in enumerate((wrong, is_tie, torch.ones_like(tried))):
                counts[row, rank] = int((which & tried).sum())
            n_raised += int(((fall < 0) & ~is_tie & tried).sum())
            if rank == 0:
                first = torch.where(is_tie | ~tried, torch.nan, wrong.double())
        return self._result(counts, n_raised, first, explanation, fixed, function)

    def _result(
        self,
        counts: Int[Tensor, "three rank"],
        n_raised: int,
        first: Float[Tensor, "row"],
        found: Attribution,
        fixed: FixedObjective,
        function: SiteFunction,
    ) -> ViolationResult:
        wrong, ties, n = (int(row.sum()) for row in counts)
        low, high = clopper_pearson(wrong, n)
        return ViolationResult(
            value=_share(wrong, n),
            null=_share(n_raised, n),
            n=n,
            range=(0.0, 1.0),
            conventions={
                **judged_by(self, self.baseline, function, found, fixed),
                "signed": found.signed,
                "null": "an attribution that is always positive",
                "se": "an exact interval instead (low, high)",
            },
            violations=counts[0],
            ties=counts[1],
            trials=counts[2],
            low=low,
            high=high,
            without_ties=_share(wrong, n - ties),
            base_rate=_share(n_raised, n),
            wrong=first,
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
