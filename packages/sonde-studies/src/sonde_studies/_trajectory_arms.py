"""Accuracy of verifiers, distances and step numbers on trajectories."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sonde import Model
from sonde.detect import Mahalanobis, TrajectoryVerifier
from sonde.metrics import joint_match, localisation, step_f1
from sonde_studies._read_trajectories import (
    EVERY,
    MORE,
    SITE,
    Steps,
    pairs_of,
    steps_of,
    surprises,
)
from sonde_studies._separation import area
from sonde_studies.worlds import Trajectory

ALARM = 0.05


def fitted(fit: Steps) -> Any:
    names = [str(i) for i in fit.trajectory.tolist()]
    return TrajectoryVerifier().fit(
        fit.x, first_error=fit.first_error, position=fit.position, ids=names, group=names
    )


def verified(name: str, fit: Steps, test: Steps, clean: tuple[Steps, Steps]) -> dict[str, float]:
    """Return a verifier's scores of test trajectories, fitted on others."""
    scorer = fitted(fit)
    found = scorer.localise(test.x, test.position, test.trajectory)
    held, fresh = (scorer.localise(c.x, c.position, c.trajectory).wrong for c in clean)
    said = found.answers()[test.trajectory] == test.position
    first = test.is_first
    figures = {
        "false alarms": alarms(held, fresh),
        **areas(found.wrong, found.first, test),
        "macro-F1": float(step_f1(found.wrong > 0.5, test.wrong, macro=True, resamples=0).value),
        "joint match": float(joint_match(said, first, test.trajectory, resamples=0).value),
    }
    null = {"null": area(held, fresh)} if name == "completed" else {}
    return null | {f"{name} | {what}": value for what, value in figures.items()}


def arms_of_why(
    model: Model, fit: list[Trajectory], test: list[Trajectory], seed: int
) -> dict[str, float]:
    """Return the results of verifiers with other inputs or more training pairs."""
    both = {"fit": fit, "test": test}
    plain = {part: steps_of(model, made) for part, made in both.items()}
    last, every = (
        {part: steps_of(model, made, sites, reducer) for part, made in both.items()}
        for sites, reducer in ((SITE, "step_ends"), (EVERY, "steps"))
    )
    extra = {part: surprises(model, made)[:, None] for part, made in both.items()}
    joined = {k: replace(s, x=torch.cat([s.x, extra[k]], dim=1)) for k, s in plain.items()}
    more = pairs_of((MORE - 1) * len(fit) // 2, seed)["completed"]
    arms = {
        "why: last token": last,
        "why: all layers": every,
        "why: surprise beside": joined,
        "why: surprise alone": {k: replace(s, x=extra[k]) for k, s in plain.items()},
        f"why: {MORE} x the pairs": plain | {"fit": steps_of(model, [*fit, *more])},
    }
    figures: dict[str, float] = {}
    for name, steps in arms.items():
        of = steps["test"]
        found = fitted(steps["fit"]).localise(of.x, of.position, of.trajectory)
        told = areas(found.wrong, found.first, of)
        figures |= {f"{name} | {what}": value for what, value in told.items()}
    return figures


def areas(whole: Tensor, by_step: Tensor, test: Steps) -> dict[str, float]:
    """Return the AUROCs of trajectories and of steps."""
    place = localisation(by_step, test.is_first, test.trajectory, resamples=0)
    return {
        "detection": area(whole[~test.wrong], whole[test.wrong]),
        "localisation": float(place.value),
    }


def alarms(held: Tensor, fresh: Tensor) -> float:
    """Return the fraction of new trajectories with a small conformal p-value."""
    above = (held[None] >= fresh[:, None]).double().sum(1)
    return float(((1 + above) / (1 + len(held)) <= ALARM).double().mean())


def distances(fit: Steps, test: Steps, clean: tuple[Steps, Steps]) -> dict[str, float]:
    """Return the result of the largest distance of a step to correct steps."""
    usual = fit.x[fit.first_error < 0]
    scorer = Mahalanobis().fit(usual)
    held, fresh = (c.highest(scorer.score(c.x)) for c in clean)
    score = scorer.score(test.x)
    figures = {"false alarms": alarms(held, fresh), **areas(test.highest(score), score, test)}
    return {f"Mahalanobis | {what}": value for what, value in figures.items()}


def by_surprise(
    name: str, model: Model, made: Sequence[Trajectory], test: Steps
) -> dict[str, float]:
    """Return the result of the largest surprise of a token in each step."""
    score = surprises(model, made)
    told = areas(test.highest(score), score, test)
    return {f"largest surprise, {name} | {what}": value for what, value in told.items()}


def by_numbers(fit: Steps, test: Steps) -> dict[str, float]:
    """Return the results of the step count and of the commonest wrong step."""
    length = test.highest(test.position.double())
    prior = Counter(fit.position[fit.is_first].tolist())
    chance = torch.tensor([float(prior[i]) for i in test.position.tolist()])
    return {
        "length | detection": area(length[~test.wrong], length[test.wrong]),
        "step prior | localisation": areas(length, chance, test)["localisation"],
    }
