"""Shortest paths on a grid with walls."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import ClassVar, final

from sonde_studies.worlds.world import Fault, World

Cell = tuple[int, int]
MOVES: dict[str, Cell] = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}


@dataclass(frozen=True)
class Maze:
    """A grid of ``size`` by ``size`` cells, its walls, and a path to find."""

    size: int
    walls: frozenset[Cell]
    start: Cell
    goal: Cell


@dataclass(frozen=True)
class Walker:
    """The agent's position, its supposed goal, and whether it has stopped."""

    cell: Cell
    target: Cell
    stopped: bool = False


@final
@dataclass(frozen=True)
class Grid(World[Maze, Walker]):
    """Moves to a goal along a shortest path, then a stop.

    Parameters
    ----------
    smallest, largest : int
        Cells along a side.
    walls : float
        Share of the cells that are walls.
    """

    smallest: int = 4
    largest: int = 12
    walls: float = 0.2
    name: ClassVar[str] = "grid"

    def draw(self, source: Random) -> Maze:
        """Return a maze whose goal is reachable in three or more moves."""
        while True:
            size = source.randint(self.smallest, self.largest)
            cells = [(row, column) for row in range(size) for column in range(size)]
            walls = frozenset(cell for cell in cells if source.random() < self.walls)
            free = [cell for cell in cells if cell not in walls]
            if len(free) < 2:
                continue
            start, goal = source.sample(free, 2)
            maze = Maze(size, walls, start, goal)
            if (_distances(maze, goal).get(start) or 0) >= 3:
                return maze

    def text(self, task: Maze) -> str:
        """Return the grid and the requested path as text."""
        walls = ", ".join(map(str, sorted(task.walls))) or "none"
        return (
            f"Grid of {task.size} by {task.size}, row before column, walls at {walls}. Go from "
            f"{task.start} to {task.goal} by the shortest way and stop there."
        )

    def start(self, task: Maze) -> Walker:
        """Return the agent at the start, knowing the goal."""
        return Walker(task.start, task.goal)

    def act(self, task: Maze, state: Walker, action: str) -> tuple[Walker, str]:
        """Move unless a wall blocks, or stop."""
        if action == "stop":
            return replace(state, stopped=True), f"stopped at {state.cell}"
        move = MOVES.get(action.removeprefix("move "))
        if move is None:
            return state, "error: no such action"
        cell = state.cell[0] + move[0], state.cell[1] + move[1]
        if not _is_free(task, cell):
            return state, f"blocked, still at {state.cell}"
        return replace(state, cell=cell), f"now at {cell}"

    def decide(self, task: Maze, state: Walker) -> str | None:
        """Return the first move of a shortest path to the target, then the stop."""
        if state.stopped:
            return None
        if state.cell == state.target:
            return "stop"
        away = _distances(task, state.target)
        nearer = [n for n, cell in _next(task, state.cell) if away[cell] < away[state.cell]]
        return f"move {nearer[0]}"

    def thought(self, task: Maze, state: Walker, action: str) -> str:
        """Describe the agent's position and target."""
        return f"I am at {state.cell} and the goal is {state.target}."

    def is_solved(self, task: Maze, state: Walker) -> bool:
        """Return whether the agent stopped at the goal."""
        return state.stopped and state.cell == task.goal

    def failures(self, task: Maze, state: Walker, source: Random) -> list[Fault[Walker]]:
        """Return a stop before the goal, and moves to wrong goals."""
        found = [Fault("stop", state)] if state.cell != state.target else []
        away = _distances(task, state.cell)
        cells = sorted(c for c in away if c not in (state.cell, state.target))
        for target in source.sample(cells, min(3, len(cells))):
            mistaken = replace(state, target=target)
            found.append(Fault(self.decide(task, mistaken) or "", mistaken))
        return found

    def detours(
        self, task: Maze, state: Walker, done: list[str], source: Random
    ) -> list[Fault[Walker]]:
        """Return moves away from the target, and moves into a wall."""
        if state.cell == state.target:
            return []
        away = _distances(task, state.target)
        nearer = {n for n, cell in _next(task, state.cell) if away[cell] < away[state.cell]}
        return [Fault(f"move {name}", state) for name in MOVES if name not in nearer]

    def extras(
        self, task: Maze, state: Walker, done: list[str], source: Random
    ) -> list[Fault[Walker]]:
        """Return moves after the stop."""
        return [Fault(f"move {name}", state) for name, _ in _next(task, state.cell)]


def _is_free(task: Maze, cell: Cell) -> bool:
    return cell not in task.walls and all(0 <= place < task.size for place in cell)


def _next(task: Maze, cell: Cell) -> list[tuple[str, Cell]]:
    """Return the moves from a cell that no wall blocks, and their target cells."""
    reached = [(n, (cell[0] + move[0], cell[1] + move[1])) for n, move in MOVES.items()]
    return [(name, place) for name, place in reached if _is_free(task, place)]


@lru_cache(maxsize=64)
def _distances(task: Maze, goal: Cell) -> Mapping[Cell, int]:
    """Return the least number of moves to a goal from every cell that can reach it."""
    away, waiting = {goal: 0}, deque([goal])
    while waiting:
        cell = waiting.popleft()
        for _, place in _next(task, cell):
            if place not in away:
                away[place] = away[cell] + 1
                waiting.append(place)
    return away
