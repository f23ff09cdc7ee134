"""Worlds with exact simulators: a task, the effects of actions, and a faultless agent.

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
    """A thought, an action and an observation."""

    thought: str
    action: str
    observation: str


@dataclass(frozen=True)
class Trajectory:
    """A task with the steps taken.

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
        """1 for a trajectory with a wrong step, else 0."""
        return int(self.first_error >= 0)

    def row(self) -> dict[str, Any]:
        """Return the trajectory as one line of a JSON Lines file."""
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
    """A wrong action, and the state in which it is taken."""

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
        """Return a task as text."""

    @abstractmethod
    def start(self, task: TaskT) -> StateT:
        """Return the state before the first step."""

    @abstractmethod
    def act(self, task: TaskT, state: StateT, action: str) -> tuple[StateT, str]:
        """Return the state after an action, and the observation."""

    @abstractmethod
    def decide(self, task: TaskT, state: StateT) -> str | None:
        """Return the faultless agent's next action, or None if it is done."""

    @abstractmethod
    def thought(self, task: TaskT, state: StateT, action: str) -> str:
        """Return the thought of an agent that takes this action."""

    @abstractmethod
    def is_solved(self, task: TaskT, state: StateT) -> bool:
        """Return whether the agent has stopped with the task solved."""

    @abstractmethod
    def failures(self, task: TaskT, state: StateT, source: Random) -> list[Fault[StateT]]:
        """Return wrong actions that replace the next action and may make the task fail."""

    @abstractmethod
    def detours(
        self, task: TaskT, state: StateT, done: list[str], source: Random
    ) -> list[Fault[StateT]]:
        """Return useless actions before the next action; ``done`` are the actions so far."""

    @abstractmethod
    def extras(
        self, task: TaskT, state: StateT, done: list[str], source: Random
    ) -> list[Fault[StateT]]:
        """Return additional actions after the end."""

    def step(self, task: TaskT, state: StateT, action: str) -> tuple[StateT, Step]:
        """Return the state after an action, and the resulting step."""
        after, seen = self.act(task, state, action)
        return after, Step(self.thought(task, state, action), action, seen)


Policy = Callable[[Any, Any], str | None]


def complete(
    world: World[TaskT, StateT], task: TaskT, state: StateT, policy: Policy | None = None
) -> tuple[StateT, list[Step]]:
    """Return the final state of an agent from a given state, and the steps to it.

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
