"""A wrong step inserted into a correct trajectory, with all its consequences.

Changing a step and leaving the rest would leave contradictions that a verifier learns instead of
the error. Here the agent goes on from the state that the wrong step led to.
"""

from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

from sonde import InputError
from sonde_studies.worlds.world import (
    MOST_STEPS,
    Fault,
    Policy,
    Step,
    Trajectory,
    World,
    complete,
)

Kind = Literal["I", "II", "III"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_EXTRAS = 2

Reason = Literal[
    "no place", "prefix changed", "no difference", "equivalent", "not solved", "too long"
]


@dataclass(frozen=True)
class Rejected:
    """Reason why a perturbation gave no trajectory."""

    reason: Reason


def perturb_and_complete(
    clean: Trajectory,
    world: World[Any, Any],
    task: Any,
    kind: Kind,
    source: Random,
    policy: Policy | None = None,
) -> Trajectory | Rejected:
    """Return a trajectory that goes wrong at one step and continues from there.

    ``I``: a wrong action in place of a step, so that the task fails. ``II``: an action that leads
    nowhere before a step; the task is solved in more steps. ``III``: actions after the end.
    Rejected is what changed nothing that can be seen, what was right after all, and what the agent
    did not bring to an end.

    Parameters
    ----------
    clean : Trajectory
        A faultless trajectory of the task; it stays as it is.
    world : World
        Says what actions do, and which are wrong.
    task : task of the world
    kind : {"I", "II", "III"}
    source : random.Random
        Of the place and of the wrong action.
    policy : callable, optional
        Who goes on after the wrong step; the world's faultless agent by default.

    Raises
    ------
    InputError
        If the kind is not known.
    """
    if kind not in KINDS:
        raise InputError(f"perturb_and_complete: expected kind I, II or III, got {kind!r}.")
    n = len(clean.steps)
    place = {"I": source.randrange(n), "II": source.randrange(n), "III": n}[kind]
    done = [step.action for step in clean.steps[:place]]
    state, prefix = _replayed(world, task, done)
    if prefix != list(clean.steps[:place]):
        return Rejected("prefix changed")
    fault = _fault(world, task, state, kind, done, source)
    if fault is None:
        return Rejected("no place")
    state, wrong = world.step(task, fault.state, fault.action)
    steps = [*prefix, wrong]
    if kind == "III":
        state, more = _further(world, task, state, [s.action for s in steps], source)
    else:
        try:
            state, more = complete(world, task, state, policy)
        except InputError:
            return Rejected("too long")
    steps += more
    reason = _reason(clean, steps, place, kind, world.is_solved(task, state))
    if reason is not None:
        return Rejected(reason)
    return Trajectory(f"{clean.source}/{kind}", clean.source, clean.task, tuple(steps), place, kind)


def _replayed(world: World[Any, Any], task: Any, actions: list[str]) -> tuple[Any, list[Step]]:
    """Return the state after some actions, and their steps."""
    state, steps = world.start(task), []
    for action in actions:
        state, step = world.step(task, state, action)
        steps.append(step)
    return state, steps


def _fault(
    world: World[Any, Any], task: Any, state: Any, kind: Kind, done: list[str], source: Random
) -> Fault[Any] | None:
    if kind == "I":
        found = world.failures(task, state, source)
    elif kind == "II":
        found = world.detours(task, state, done, source)
    else:
        found = world.extras(task, state, done, source)
    return source.choice(found) if found else None


def _further(
    world: World[Any, Any], task: Any, state: Any, done: list[str], source: Random
) -> tuple[Any, list[Step]]:
    """Return some additional steps after the end."""
    steps: list[Step] = []
    for _ in range(source.randrange(MOST_EXTRAS)):
        found = world.extras(task, state, [*done, *(s.action for s in steps)], source)
        if not found:
            break
        fault = source.choice(found)
        state, step = world.step(task, fault.state, fault.action)
        steps.append(step)
    return state, steps


def _reason(
    clean: Trajectory, steps: list[Step], place: int, kind: Kind, is_solved: bool
) -> Reason | None:
    """Return why these steps are not an example of this kind of error, or None."""
    if len(steps) > MOST_STEPS:
        return "too long"
    if kind == "III":
        return None
    if (steps[place].action, steps[place].observation) == (
        clean.steps[place].action,
        clean.steps[place].observation,
    ):
        return "no difference"
    if kind == "I":
        return "equivalent" if is_solved else None
    if not is_solved:
        return "not solved"
    return "equivalent" if len(steps) <= len(clean.steps) else None
