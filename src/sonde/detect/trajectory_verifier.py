"""Test whether a trajectory went wrong, and at which step first.

For data whose wrong steps are known, such as trajectories that were perturbed on purpose. Injected
errors are not natural ones: calibrate on clean natural trajectories, and look at the false alarms
on these first.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector, Where
from sonde.core.ranges import check_ranges
from sonde.core.reduction import OWN, Reduced, reduce_scores
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._hazard_head import (
    HazardState,
    HazardWalks,
    StepMoments,
    StepMomentsState,
    UsualTrajectories,
    features,
)
from sonde.detect._metric import check_fitted_width
from sonde.detect._probe import probe_scorer
from sonde.stats import TwoGroups, inverse_root
from sonde.stats.sequences import by_example
from sonde.stats.shrinkage import Shrinkage, check_shrinkage


@dataclass(frozen=True)
class StepChances(State):
    """Probabilities for trajectories (by ascending number) and for rows (in given order).

    ``wrong`` is the chance that some step is wrong; ``step`` is the likeliest first wrong step and
    ``row`` its row. ``first`` is the chance that the row's step is the first wrong step. ``alarm``
    is the chance that the first wrong step is this step or an earlier one: it never falls along a
    trajectory.
    """

    trajectory: Int[Tensor, "trajectory"]
    wrong: Float[Tensor, "trajectory"]
    step: Int[Tensor, "trajectory"]
    row: Int[Tensor, "trajectory"]
    first: Float[Tensor, "row"]
    alarm: Float[Tensor, "row"]

    def answers(self, threshold: float = 0.5) -> Int[Tensor, "trajectory"]:
        """Return each trajectory's first wrong step; -1 if ``wrong`` is at most ``threshold``."""
        return torch.where(self.wrong > threshold, self.step, -1)


def step_chances(
    hazard: Float[Tensor, "row"], trajectory: Int[Tensor, "_row"], position: Int[Tensor, "_row"]
) -> StepChances:
    """Return the trajectories' probabilities from their steps' hazards, in any order.

    The hazard ``h_t`` is the chance that step ``t`` is wrong if no step before is wrong. The first
    wrong step is ``t`` with chance ``h_t prod_{s<t} (1 - h_s)``; no step is wrong with chance
    ``prod (1 - h_s)``. A hazard that is not finite makes its trajectory's ``wrong`` infinite.

    Parameters
    ----------
    hazard : Float[Tensor, "row"]
    trajectory, position : Int[Tensor, "row"]
        Which trajectory a row belongs to, and the number of its step.

    Raises
    ------
    InputError
        If a trajectory has a step twice.

    Examples
    --------
    >>> found = step_chances(torch.tensor([0.1, 0.5, 0.2]), torch.zeros(3).long(), torch.arange(3))
    >>> [round(v, 3) for v in found.first.tolist()], round(1 - float(found.wrong), 3)
    ([0.1, 0.45, 0.09], 0.36)
    """
    trajectory, position = trajectory.cpu(), position.cpu()
    steps = by_example(trajectory, position)
    examples, order, member, counts = steps.example, steps.rows, steps.member, steps.counts
    place = steps.rank
    _check_once(trajectory[order], position[order])
    hazards = hazard.detach().to("cpu", torch.float64)[order]
    broken = ~torch.isfinite(hazards)
    table = torch.zeros(len(examples), int(counts.max()) if len(counts) else 0, dtype=torch.float64)
    table[member, place] = hazards.masked_fill(broken, 1.0)
    none = (1.0 - table).cumprod(1)
    first = table * torch.cat([torch.ones_like(none[:, :1]), none[:, :-1]], dim=1)
    best = first.argmax(1) if len(examples) else counts
    wrong = 1.0 - none[:, -1] if len(examples) else none.sum(1)
    wrong[member[broken]] = math.inf
    row = order[steps.starts + best]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return StepChances(
        examples,
        wrong,
        position[row],
        row,
        first[member, place][back],
        (1.0 - none)[member, place][back],
    )


def _check_once(trajectory: Int[Tensor, "row"], position: Int[Tensor, "row"]) -> None:
    twice = (trajectory[1:] == trajectory[:-1]) & (position[1:] == position[:-1])
    if bool(twice.any()):
        raise InputError(
            "step_chances: expected each step of a trajectory once, got step "
            f"{int(position[1:][twice][0])} twice. Give each trajectory a different id."
        )


@final
@dataclass(frozen=True, kw_only=True)
class TrajectoryScorer(Scorer):
    """The hazard of each step: its probability of being wrong if no earlier step was.

    ``axis`` and ``origin`` end with the entry for ``log(1 + step)``. The score of a trajectory is
    the chance that some step is wrong. ``value`` is the mean loss of a fitted trajectory in nats
    (``hazard``), or the distance of right and wrong steps in standard deviations (``lda``).
    """

    axis: Float[Tensor, "feature"]
    origin: Float[Tensor, "feature"]
    bias: float

    def score(
        self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]
    ) -> Float[Tensor, "row"]:
        """Return the hazard of each step."""
        check_fitted_width("TrajectoryVerifier", x, len(self.axis) - 1)
        z = features(x, position) - self.origin.to(x.device)
        hazard = torch.sigmoid((z * self.axis.to(x.device)).sum(1) + self.bias)
        return infinite_where_nonfinite(hazard, x)

    def localise(
        self,
        x: Float[Tensor, "row dim"],
        position: Int[Tensor, "row"],
        trajectory: Int[Tensor, "row"],
    ) -> StepChances:
        """Return for each trajectory whether and where it is wrong, and each row's alarm."""
        return step_chances(self.score(x, position), trajectory, position)

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return the probability that some step is wrong, to_path at the likeliest first one."""
        if how != OWN:
            return reduce_scores(scores, example, how)
        chances = step_chances(scores, example, columns[1])
        return Reduced(chances.trajectory, chances.wrong, chances.row)


@final
@dataclass(frozen=True)
class TrajectoryVerifier(Detector):
    """Probability that a step of a trajectory is wrong, and that it is the first wrong one.

    A row is a step given all before it. ``h_t = sigmoid(w . x_t + v log(1 + t) + b)`` is the chance
    that step ``t`` is wrong if none was before: then the first wrong step is ``t`` with chance
    ``h_t prod_{s<t} (1 - h_s)``, and some step is wrong with chance ``1 - prod (1 - h_s)``, the
    score of the trajectory. Up to a given step, this chance is an alarm that is never taken back.

    ``hazard`` fits the chance of what is known of each trajectory; if only the verdict "wrong" is
    known, the step is inferred. ``lda`` takes the moments of right and of first wrong steps: exact
    in one pass, with steps known.

    Range        [0, 1]; higher = more likely wrong.
    Cost         hazard: 8 to 31 walks over the rows, each O(dim^2) per step, and O(dim^3) after
                 each; lda: one pass, state 8 dim^2 bytes.
    Assumes      columns ``first_error`` and ``position`` (rows of the reducer ``steps``);
                 trajectories of both kinds.
    Differs      from the paper: reads hidden states where that trains a language model to answer.

    Parameters
    ----------
    head : {"hazard", "lda"}, default="hazard"
        How the hazard is fitted.
    rows : {"steps", "step_ends"}, default="steps"
        Reducer that the rows come by.
    l2 : float, default=1e-3
        Penalty of ``hazard``, on features of variance 1.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the identity mixed into the correlations of ``lda``.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [0.0], [0.0], [0.0], [3.0], [0.0], [0.2], [0.1], [2.5]])
    >>> trajectory, step = torch.arange(9) // 3, torch.arange(9) % 3
    >>> first = [-1, -1, -1, 1, 1, 1, 2, 2, 2]
    >>> verifier = TrajectoryVerifier(head="lda")
    >>> scorer = verifier.fit(x, first_error=first, position=step, ids=trajectory.tolist())
    >>> scorer.localise(x, step, trajectory).answers().tolist()
    [-1, 1, 2]

    References
    ----------
    liu2026trajad
    """

    head: Literal["hazard", "lda"] = "hazard"
    rows: Literal["steps", "step_ends"] = "steps"
    l2: float = 1e-3
    shrinkage: Shrinkage = "oas"
    paper: ClassVar[str] = "liu2026trajad"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"head": "lda"})
    reduces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_shrinkage("TrajectoryVerifier", self.shrinkage)
        check_ranges(self, l2="> 0")

    @property
    def usual(self) -> Where:
        """Select trajectories not labelled as wrong."""
        return UsualTrajectories()

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per step."""
        return {"reducer": self.rows}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for trained weights, or for moments of correct and wrong steps."""
        if self.head == "hazard":
            return {"trained": HazardWalks(self.l2)}
        return {"moments": StepMoments()}

    def result(
        self, trained: HazardState | None = None, moments: StepMomentsState | None = None
    ) -> TrajectoryScorer:
        """Return the hazard in the rows' units."""
        if trained is not None:
            return self._hazard(trained)
        assert moments is not None  # one of the two states is always read
        return self._lda(moments)

    def _hazard(self, state: HazardState) -> TrajectoryScorer:
        _require(state.wrong, state.right, "trajectories")
        assert state.scale is not None  # a walk with trajectories follows the one for the scale
        spread = state.scale.variance.sqrt()
        inverse = torch.where(spread > 0, 1.0 / spread, 0.0)
        return TrajectoryScorer(
            value=state.loss,
            n=state.right + state.wrong,
            unit="nats per trajectory",
            conventions={
                "wrong": state.wrong,
                "walks": state.walk,
                "converged": state.done,
                "se": "not given for a scorer: calibrate its scores",
            },
            axis=state.weight[:-1] * inverse,
            origin=state.scale.mean,
            bias=float(state.weight[-1]),
        )

    def _lda(self, state: StepMomentsState) -> TrajectoryScorer:
        counts = dict(zip(state.classes.labels.tolist(), state.classes.n.tolist(), strict=True))
        _require(counts.get(1, 0), counts.get(0, 0), "steps")
        groups = TwoGroups.of("TrajectoryVerifier", state.classes, 1)
        spread = (groups.within.diagonal() / groups.n_rows).sqrt()
        inverse = torch.where(spread > 0, 1.0 / spread, 0.0)
        within = groups.within * inverse * inverse[:, None]
        root = inverse_root(within, groups.n_rows, self.shrinkage).root
        axis = inverse * (root @ (root.T @ (groups.gap * inverse)))
        probe = probe_scorer(groups, axis, groups.mean.mean(0), 1)
        return TrajectoryScorer(
            value=probe.value,
            n=groups.n_rows,
            unit=probe.unit,
            flags=tuple(f for f in probe.flags if f != "unlabelled"),
            conventions={
                "wrong": counts[1],
                "left_out": state.vague,
                "se": "not given for a scorer: calibrate its scores",
            },
            axis=axis,
            origin=probe.origin,
            bias=float(torch.tensor(groups.n[1] / groups.n[0]).log()),
        )


def _require(wrong: int, right: int, what: str) -> None:
    if min(wrong, right) == 0:
        raise InputError(
            f"TrajectoryVerifier: expected correct and wrong {what}, got {right} correct and "
            f"{wrong} wrong. Give trajectories of both kinds: 'first_error' is the first wrong "
            "step, counted from 0, and -1 if all steps are correct; an empty value means "
            "unknown."
        )
