"""Locate errors in trajectories: F1 of steps, the first wrong step, verdict with step."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.tensors import as_tensor
from sonde.metrics._ranked import kinds, numbers
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, Metric, measured, members


def step_f1(
    alarm: Any,
    wrong: Any,
    trajectory: Any = None,
    *,
    macro: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return F1 of flagged steps against wrong ones: ``2 tp / (2 tp + fp + fn)``.

    Rows may be whole trajectories as well: then it is F1 of the verdict. Where nothing is flagged
    and nothing is wrong the value is not defined (NaN).

    Parameters
    ----------
    alarm, wrong : array (step,)
        1 where a step is flagged, and where it is wrong.
    trajectory : array (step,), optional
        Resampled whole.
    macro : bool, default=False
        The mean of F1 of the wrong and F1 of the right steps.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> step_f1([0, 1, 1, 0], [0, 1, 0, 0]).value
    0.6666666666666666
    """
    flagged = kinds("step_f1", alarm, as_tensor("step_f1", alarm, "alarm").numel())
    truth = kinds("step_f1", wrong, len(flagged))
    if len(flagged) == 0:
        raise InputError("step_f1: expected at least one step, got none.")

    def figure(weight: Tensor) -> Tensor:
        score = _f1(weight, flagged, truth)
        return (score + _f1(weight, ~flagged, ~truth)) / 2 if macro else score

    return measured(
        figure, members(trajectory, len(truth)), Bootstrap(resamples, seed, level),
        range=(0.0, 1.0), kinds=(flagged | truth,),
        n_positive=int(truth.sum()), n_negative=int((~truth).sum()),
        conventions={"average": "macro" if macro else "wrong steps"},
    )  # fmt: skip


def localisation(
    scores: Any,
    first_wrong: Any,
    trajectory: Any,
    *,
    within: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the fraction of trajectories whose highest-scored step is the first wrong one.

    Only trajectories with a wrong step count. Where several steps share the highest score, the
    share of them that is right counts: the mean over ways to break the tie.

    Parameters
    ----------
    scores : array (step,)
        Higher = more likely the first wrong step.
    first_wrong : array (step,)
        1 at the first wrong step, at most once in a trajectory.
    trajectory : array (step,)
        Steps of one trajectory stand in their order.
    within : int, default=0
        Steps that the answer may be off.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> localisation([0.1, 0.9, 0.2, 0.8, 0.8], [0, 1, 0, 0, 1], [7, 7, 7, 8, 8]).value
    0.75
    """
    values = numbers("localisation", scores, "scores")
    truth = kinds("localisation", first_wrong, len(values))
    member, place = _places("localisation", truth, trajectory)

    def one(rows: Int[Tensor, "step"]) -> float:
        top = values[rows] == values[rows].max()
        target = place[rows][truth[rows]]
        near = (place[rows][top] - target).abs() <= within
        return float(near.double().mean())

    return _share(
        _each(member, truth, one), Bootstrap(resamples, seed, level), {"within": within}, truth
    )


def joint_match(
    alarm: Any,
    first_wrong: Any,
    trajectory: Any,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the fraction of trajectories with both verdict and first wrong step correct.

    A trajectory counts as right when its first alarm is at its first wrong step, or when it has
    neither.

    Parameters
    ----------
    alarm : array (step,)
        Whether each step is flagged.
    first_wrong : array (step,)
        Index of the first wrong step of each trajectory, as in ``localisation``; -1 if no step is
        wrong.
    trajectory : array (step,)
        Trajectory that each step belongs to.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> joint_match([0, 1, 1, 0, 0], [0, 1, 0, 0, 0], [7, 7, 7, 8, 8]).value
    1.0
    """
    flagged = kinds("joint_match", alarm, as_tensor("step_f1", alarm, "alarm").numel())
    truth = kinds("joint_match", first_wrong, len(flagged))
    member, _ = _places("joint_match", truth, trajectory)

    def one(rows: Int[Tensor, "step"]) -> float:
        flags, right = torch.nonzero(flagged[rows]), torch.nonzero(truth[rows])
        return float(torch.equal(flags[:1], right[:1]))

    every = torch.ones_like(truth)
    return _share(_each(member, every, one), Bootstrap(resamples, seed, level), {}, truth)


def _f1(weight: Tensor, flagged: Bool[Tensor, "step"], truth: Bool[Tensor, "step"]) -> Tensor:
    hits = (weight * (flagged & truth)).sum(1)
    all_of_both = (weight * flagged).sum(1) + (weight * truth).sum(1)
    return 2 * hits / all_of_both


def _places(
    name: str, first_wrong: Bool[Tensor, "step"], trajectory: Any
) -> tuple[Int[Tensor, "step"], Int[Tensor, "step"]]:
    """Return each step's trajectory and its index in it, after checking the labels."""
    member = members(trajectory, len(first_wrong))
    if len(member) == 0:
        raise InputError(f"{name}: expected at least one step, got none.")
    most = int(torch.bincount(member[first_wrong], minlength=1).max())
    if most > 1:
        raise InputError(
            f"{name}: expected at most one first wrong step in each trajectory, got {most} in one."
        )
    order = torch.argsort(member, stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(member).cumsum(0)[:-1]])
    place = torch.empty_like(member)
    place[order] = torch.arange(len(member)) - starts[member[order]]
    return member, place


def _each(
    member: Int[Tensor, "step"],
    counted: Bool[Tensor, "step"],
    one: Callable[[Tensor], float],
) -> Float[Tensor, "trajectory"]:
    """Return the value of ``one`` for each trajectory that has a counted step."""
    names = member[counted].unique()
    if len(names) == 0:
        raise InputError("localisation: expected at least one trajectory with a wrong step.")
    order = torch.argsort(member, stable=True)
    rows = torch.split(order, torch.bincount(member).tolist())
    return torch.tensor([one(rows[i]) for i in names.tolist()], dtype=torch.float64)


def _share(
    right: Float[Tensor, "trajectory"],
    bootstrap: Bootstrap,
    conventions: dict[str, Any],
    truth: Bool[Tensor, "step"],
) -> Metric:
    """Return the mean over trajectories, each as its own group."""

    def figure(weight: Tensor) -> Tensor:
        return (weight * right).sum(1) / weight.sum(1)

    n_positive = int(truth.sum())
    return measured(
        figure, members(None, len(right)), bootstrap, range=(0.0, 1.0), conventions=conventions,
        n_positive=n_positive, n_negative=len(right) - min(n_positive, len(right)),
    )  # fmt: skip
