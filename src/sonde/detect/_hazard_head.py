"""Fit the hazard of steps by Newton's method over several passes, or by moments in one.

A row is a step with its features: the state, and the logarithm of one plus the step's number.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.instrument import Where
from sonde.core.state import State
from sonde.core.statistic import Learner, Statistic
from sonde.stats import ClassMoments, ClassMomentsState, Moments, MomentsState
from sonde.stats.sequences import by_example, example_numbers

NONE, SOMEWHERE = -1, -2
MOST_WALKS = 30
CLOSE = 1e-12
LEAST_CURVE = 1e-9
_DIAGONAL = Moments("diag")
_CLASSES = ClassMoments()


def features(
    x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]
) -> Float[Tensor, "row features"]:
    """Return rows with ``log(1 + position)`` as a further feature, in float64."""
    index = torch.log1p(position.to(x.device, torch.float64))
    return torch.cat([x.double(), index[:, None]], dim=1)


@final
@dataclass(frozen=True)
class UsualTrajectories(Where):
    """Selects rows of trajectories not labelled as wrong, or all rows if none is labelled."""

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"] | None:
        """Keep trajectories without a wrong step, and unlabelled trajectories."""
        if "first_error" not in batch.extra:
            return None
        first_error = batch.column("first_error", key)
        return (first_error == NONE) | (first_error < SOMEWHERE)


@dataclass(frozen=True)
class StepMomentsState(State):
    """Moments of correct (class 0) and first wrong steps (1); ``vague`` counts unclear rows."""

    classes: ClassMomentsState
    vague: int


@final
@dataclass(frozen=True)
class StepMoments(Statistic[StepMomentsState]):
    """Moments of correct and first wrong steps, independent of how data are split.

    Steps after the first wrong step count as unlabelled. The steps of a trajectory count as
    unlabelled too if its first wrong step is not known.
    """

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        first_error: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> StepMomentsState:
        """Return the moments of a batch."""
        kind = torch.where(position < first_error, 0, -1)
        kind = torch.where(first_error == NONE, 0, kind)
        kind = torch.where(position == first_error, 1, kind)
        vague = int((first_error < NONE).sum())
        return StepMomentsState(_CLASSES.observe(features(x, position), kind), vague)

    def merge(self, a: StepMomentsState, b: StepMomentsState) -> StepMomentsState:
        """Return the joined moments."""
        return StepMomentsState(_CLASSES.merge(a.classes, b.classes), a.vague + b.vague)


@dataclass(frozen=True)
class HazardState(State):
    """State of Newton's method, with the sums of the current pass over the rows.

    Walk 0 learns the scale of the features. ``weight`` ends with the intercept; ``before`` is the
    last accepted weight and ``loss`` its loss. ``right`` and ``wrong`` count the trajectories of
    the last whole walk, ``n`` and ``n_wrong`` the trajectories of this walk.
    """

    walk: int
    scale: MomentsState | None
    weight: Float[Tensor, "feature"]
    before: Float[Tensor, "feature"]
    loss: float
    right: int
    wrong: int
    slope: Float[Tensor, "feature"]
    curve: Float[Tensor, "feature feature"]
    total: float
    n: int
    n_wrong: int
    done: bool


@final
@dataclass(frozen=True)
class HazardWalks(Learner[HazardState]):
    """A logistic hazard of steps by Newton's method, with one step per pass over the rows.

    The loss of a trajectory is minus the log of the chance of what is known: which step is the
    first wrong step, that no step is wrong, or only that some step is wrong. In this last case the
    curvature comes from the expected complete likelihood, which is never negative. A step that made
    the loss larger is halved.

    Parameters
    ----------
    l2 : float
        Penalty ``l2 / 2 |w|^2`` on the weights of features of variance 1.
    """

    l2: float
    whole_groups: ClassVar[bool] = True

    def start(self, dim: int) -> HazardState:
        """Return weights of 0."""
        zero = torch.zeros(dim + 2, dtype=torch.float64)
        curve = torch.zeros(dim + 2, dim + 2, dtype=torch.float64)
        return HazardState(
            walk=0, scale=None, weight=zero, before=zero, loss=float("inf"), right=0, wrong=0,
            slope=zero, curve=curve, total=0.0, n=0, n_wrong=0, done=False,
        )  # fmt: skip

    def n_passes(self) -> int:
        """Return the largest number of passes: one for the scale, then those that train."""
        return 1 + MOST_WALKS

    def is_trained(self, state: HazardState) -> bool:
        """Return whether a further Newton step would gain almost nothing."""
        return state.done

    def update(
        self,
        state: HazardState,
        x: Float[Tensor, "row dim"],
        first_error: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        occurrence: Int[Tensor, "row"],
    ) -> HazardState:
        """Add these trajectories to the sums of the pass."""
        has_place = first_error >= SOMEWHERE
        z = features(x[has_place.to(x.device)], position[has_place]).cpu()
        if len(z) == 0:
            return state
        if state.scale is None or state.walk == 0:
            seen = _DIAGONAL.observe(z)
            scale = seen if state.scale is None else _DIAGONAL.merge(state.scale, seen)
            return replace(state, scale=scale)
        member = example_numbers(ids[has_place], occurrence[has_place])
        design = torch.cat([standard(z, state.scale), z.new_ones(len(z), 1)], dim=1)
        sums = _sums(design @ state.weight, first_error[has_place], position[has_place], member)
        slope, curve, loss = sums
        wrong = torch.unique(member[first_error[has_place] != NONE])
        return replace(
            state,
            slope=state.slope + slope @ design,
            curve=state.curve + (design * curve[:, None]).T @ design,
            total=state.total + loss,
            n=state.n + int(member.max()) + 1,
            n_wrong=state.n_wrong + len(wrong),
        )

    def close_pass(self, state: HazardState) -> HazardState:
        """Return the state after a Newton step, or after halving the last step if the loss rose."""
        fresh = replace(
            self.start(len(state.weight) - 2),
            walk=state.walk + 1,
            scale=state.scale,
            right=state.n - state.n_wrong,
            wrong=state.n_wrong,
        )
        if state.n == 0:
            return replace(fresh, done=state.walk > 0)
        penalty = torch.full_like(state.weight, self.l2)
        penalty[-1] = 0.0
        loss = state.total / state.n + 0.5 * float(penalty @ state.weight.square())
        if loss > state.loss * (1 + 1e-12) + 1e-12:
            half = (state.weight + state.before) / 2
            return replace(fresh, weight=half, before=state.before, loss=state.loss)
        slope = state.slope / state.n + penalty * state.weight
        curve = state.curve / state.n + torch.diag(penalty + LEAST_CURVE)
        step = torch.linalg.solve(curve, slope)
        done = bool(slope @ step < CLOSE)
        weight = state.weight if done else state.weight - step
        return replace(fresh, weight=weight, before=state.weight, loss=loss, done=done)


def standard(
    z: Float[Tensor, "row features"], scale: MomentsState
) -> Float[Tensor, "row features"]:
    """Return features scaled to mean 0 and variance 1; constant features become 0."""
    spread = scale.variance.sqrt()
    inverse = torch.where(spread > 0, 1.0 / spread, 0.0)
    return (z - scale.mean) * inverse


def _sums(
    logit: Float[Tensor, "row"],
    first_error: Int[Tensor, "row"],
    position: Int[Tensor, "row"],
    member: Int[Tensor, "row"],
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"], float]:
    """Return the loss's gradient and curvature in each row's logit, and the total loss."""
    hazard = torch.sigmoid(logit)
    clean = first_error == NONE
    target = (position == first_error).double()
    at_risk = (clean | (position <= first_error)).double()
    loss = -(at_risk * (target * logit + logsigmoid(-logit))).sum()
    some = first_error == SOMEWHERE
    if bool(some.any()):
        target, at_risk, more = _expected(logit, some, position, member, target, at_risk)
        loss = loss + more
    return at_risk * hazard - target, at_risk * hazard * (1 - hazard), float(loss)


def _check_whole(position: Int[Tensor, "step"]) -> None:
    """Raise if steps of a trajectory are missing, since a verdict without a step needs them all."""
    if not torch.equal(position, torch.arange(len(position))):
        raise InputError(
            "TrajectoryVerifier: expected all steps of a trajectory with a known verdict only, "
            f"got steps {position[:5].tolist()}. Give its rows the same 'group', so that they "
            "stay together, and leave out trajectories with non-finite states."
        )


def _expected(
    logit: Float[Tensor, "row"],
    some: Bool[Tensor, "row"],
    position: Int[Tensor, "row"],
    member: Int[Tensor, "row"],
    target: Float[Tensor, "row"],
    at_risk: Float[Tensor, "row"],
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"], Float[Tensor, ""]]:
    """Return expected targets and risks if some step is wrong, and ``-ln`` of its probability.

    Everything is computed from logarithms, so that small hazards keep their digits.
    """
    target, at_risk, loss = target.clone(), at_risk.clone(), logit.new_zeros(())
    trajectories = by_example(member, position).each()
    for which in torch.unique(member[some]).tolist():
        rows = trajectories[which]
        _check_whole(position[rows])
        spared = logsigmoid(-logit[rows]).cumsum(0)
        log_some = torch.log(-torch.expm1(spared[-1]))
        before = torch.cat([spared.new_zeros(1), spared[:-1]])
        target[rows] = torch.exp(logsigmoid(logit[rows]) + before - log_some)
        at_risk[rows] = target[rows].flip(0).cumsum(0).flip(0)
        loss = loss - log_some
    return target, at_risk, loss
