"""Worlds with exact simulators: a task, what an action does, and what a faultless agent does next.

A trajectory is what an agent thought, did and saw. Everything that is seen comes from the
simulator, also after a wrong step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, ClassVar, Generic, TypeVar

from sonde import InputError

MOST_STEPS = 64


@dataclass(frozen=True)
class Step:
    """What was thought, done and seen."""

    thought: str
    action: str
    observation: str


@dataclass(frozen=True)
class Trajectory:
    """A task with the steps that were taken.

    Parameters
    ----------
    id, source : str
        Its own name, and that of the task: trajectories of one source share their first steps.
    task : str
        The task in words.
    steps : tuple of Step
    first_error : int
        Number of the first wrong step; -1 if no step is wrong.
    kind : {"", "I", "II", "III"}
        What is wrong: failure, a step that leads nowhere, going on after the end.
    """

    id: str
    source: str
    task: str
    steps: tuple[Step, ...]
    first_error: int = -1
    kind: str = ""

    @property
    def label(self) -> int:
        """1 where a step is wrong, else 0."""
        return int(self.first_error >= 0)

    def row(self) -> dict[str, Any]:
        """Return what a line of a JSON Lines file holds."""
        return {
            "id": self.id,
            "instruction": self.task,
            "steps": [asdict(step) for step in self.steps],
            "label": self.label,
            "first_error": self.first_error,
            "kind": self.kind,
            "group": self.source,
        }


TaskT = TypeVar("TaskT")
StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Fault(Generic[StateT]):
    """A wrong action, and the state of world and agent in which it is taken."""

    action: str
    state: StateT


class World(ABC, Generic[TaskT, StateT]):
    """A simulator and an agent that solves every task in it. Subclasses are frozen dataclasses.

    A state holds what is so and what the agent takes to be so; thoughts are made from state and
    action alone, so that a wrong step reads like any other.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(self, source: Random) -> TaskT:
        """Return a random task that can be solved."""

    @abstractmethod
    def text(self, task: TaskT) -> str:
        """Return a task in words."""

    @abstractmethod
    def start(self, task: TaskT) -> StateT:
        """Return the state before the first step."""

    @abstractmethod
    def act(self, task: TaskT, state: StateT, action: str) -> tuple[StateT, str]:
        """Return the state after an action, and what is seen of it."""

    @abstractmethod
    def decide(self, task: TaskT, state: StateT) -> str | None:
        """Return the faultless agent's next action, or None if it is done."""

    @abstractmethod
    def thought(self, task: TaskT, state: StateT, action: str) -> str:
        """Return what an agent that takes this action thinks."""

    @abstractmethod
    def is_solved(self, task: TaskT, state: StateT) -> bool:
        """Return whether the agent has ended, with the task done."""

    @abstractmethod
    def failures(self, task: TaskT, state: StateT, source: Random) -> list[Fault[StateT]]:
        """Return wrong actions in place of the next one, which may make the task fail."""

    @abstractmethod
    def detours(
        self, task: TaskT, state: StateT, done: list[str], source: Random
    ) -> list[Fault[StateT]]:
        """Return actions that lead nowhere, before the next one; ``done`` are those so far."""

    @abstractmethod
    def extras(
        self, task: TaskT, state: StateT, done: list[str], source: Random
    ) -> list[Fault[StateT]]:
        """Return actions after the end."""

    def step(self, task: TaskT, state: StateT, action: str) -> tuple[StateT, Step]:
        """Return the state after an action, and the step that it makes."""
        after, seen = self.act(task, state, action)
        return after, Step(self.thought(task, state, action), action, seen)


Policy = Callable[[Any, Any], str | None]


def complete(
    world: World[TaskT, StateT], task: TaskT, state: StateT, policy: Policy | None = None
) -> tuple[StateT, list[Step]]:
    """Return where an agent ends from a state, and the steps to there.

    Parameters
    ----------
    world, task, state
    policy : callable, optional
        ``(task, state) -> action`` or None at the end; the faultless agent by default.

    Raises
    ------
    InputError
        If it does not end.
    """
    decide = world.decide if policy is None else policy
    steps: list[Step] = []
    while (action := decide(task, state)) is not None:
        if len(steps) == MOST_STEPS:
            raise InputError(
                f"complete: the agent took {MOST_STEPS} steps in {world.name} and did not end."
            )
        state, step = world.step(task, state, action)
        steps.append(step)
    return state, steps


def solve(world: World[TaskT, StateT], task: TaskT, name: str) -> Trajectory:
    """Return the faultless trajectory of a task."""
    state, steps = complete(world, task, world.start(task))
    if not world.is_solved(task, state):
        raise InputError(f"solve: the agent of {world.name} did not solve {world.text(task)!r}.")
    return Trajectory(f"{name}/clean", name, world.text(task), tuple(steps))
