"""Worlds, wrong steps put into right trajectories, and the sets that are built of them."""

import json
import operator
import re
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path
from sklearn.metrics import roc_auc_score

from sonde.core.errors import InputError
from sonde.data.trajectory import first_error_of, step_text
from sonde_studies.worlds import (
    KINDS,
    Calculator,
    Fault,
    Grid,
    Rejected,
    World,
    build_trajectories,
    complete,
    perturb_and_complete,
    solve,
    split_of,
    write_trajectories,
)


@pytest.fixture(scope="module")
def built():
    return build_trajectories(240)


def pairs(built):
    rows = built.trajectories
    return list(zip(rows[::2], rows[1::2], strict=True))


def calculator_answers(trajectory):
    """What is seen after each action, by Python's own arithmetic."""
    tools = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}
    for step in trajectory.steps:
        if step.action.startswith("report"):
            yield f"reported {step.action[7:-1]}"
            continue
        read = re.fullmatch(r"(v\d+) = (\w+)\((\d+), (\d+)\)", step.action)
        assert read, step.action
        name, tool, left, right = read.groups()
        yield f"{name} = {tools[tool](int(left), int(right)) % 1000}"


def grid_answers(trajectory):
    """What is seen after each action, walked on a board read from the task's words."""
    task = trajectory.task
    grid = re.match(r"Grid of (\d+)", task)
    assert grid, task
    size = int(grid[1])
    places = [(int(a), int(b)) for a, b in re.findall(r"\((\d+), (\d+)\)", task)]
    *walls, cell, _ = places
    board = np.pad(np.zeros((size, size), dtype=bool), 1, constant_values=True)
    for row, column in walls:
        board[row + 1, column + 1] = True
    for step in trajectory.steps:
        if step.action == "stop":
            yield f"stopped at {cell}"
            continue
        way = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}
        move = way[step.action.split()[1]]
        ahead = cell[0] + move[0], cell[1] + move[1]
        blocked = board[ahead[0] + 1, ahead[1] + 1]
        cell = cell if blocked else ahead
        yield f"blocked, still at {cell}" if blocked else f"now at {cell}"


@pytest.mark.truth("Python's arithmetic, and a walk on a padded board")
def test_every_observation_is_what_the_world_answers(built):
    for trajectory in built.trajectories:
        is_grid = trajectory.source.startswith("grid")
        answers = grid_answers(trajectory) if is_grid else calculator_answers(trajectory)
        assert [step.observation for step in trajectory.steps] == list(answers)


def test_steps_before_the_error_are_those_of_the_right_one(built):
    for clean, wrong in pairs(built):
        place = wrong.first_error
        assert (clean.source, clean.task) == (wrong.source, wrong.task)
        assert (clean.label, clean.first_error, clean.kind) == (0, -1, "")
        assert wrong.steps[:place] == clean.steps[:place]
        assert place == len(clean.steps) or wrong.steps[place] != clean.steps[place]
        assert 0 <= place < len(wrong.steps)


def test_what_the_kinds_mean(built):
    ends = {"I": set(), "II": set(), "III": set()}
    for clean, wrong in pairs(built):
        if wrong.kind == "I":
            assert wrong.steps[-1].action != clean.steps[-1].action or (
                wrong.steps[-1].observation != clean.steps[-1].observation
            )
        elif wrong.kind == "II":
            assert wrong.steps[-1] == clean.steps[-1]
            assert len(wrong.steps) > len(clean.steps)
        else:
            assert wrong.steps[: len(clean.steps)] == clean.steps
        ends[wrong.kind].add(len(wrong.steps) - len(clean.steps))
    assert ends["III"] == {1, 2}
    assert min(ends["I"]) < 0 < max(ends["I"])


def test_kinds_worlds_and_labels_are_balanced(built):
    kinds = [(t.source.split("-")[0], t.kind) for t in built.trajectories if t.label]
    worlds = ("calculator", "grid")
    assert {kinds.count((world, kind)) for world in worlds for kind in KINDS} == {40}
    assert sum(t.label for t in built.trajectories) * 2 == len(built.trajectories)
    assert set(built.rejected) <= {
        "no place", "no difference", "equivalent", "prefix changed", "not solved", "too long"
    }  # fmt: skip


@pytest.mark.truth("sklearn roc_auc_score")
def test_length_alone_tells_little(built):
    length = [len(t.steps) for t in built.trajectories]
    area = roc_auc_score([t.label for t in built.trajectories], length)
    assert built.length_auroc() == pytest.approx(max(area, 1 - area))
    assert built.length_auroc() <= 0.6
    assert 0.05 < built.step_prior() < 0.25


def test_same_seed_same_set():
    assert build_trajectories(12) == build_trajectories(12)
    assert build_trajectories(12).trajectories[:10] == build_trajectories(5).trajectories
    assert build_trajectories(12).trajectories != build_trajectories(12, seed=1).trajectories


def test_pairs_stay_in_one_part(built):
    parts = split_of(built.trajectories)
    assert parts[::2] == parts[1::2]
    assert parts.count("test") / len(parts) == pytest.approx(0.2, abs=0.05)
    assert split_of(built.trajectories, seed=1) != parts


@pytest.mark.truth("scipy shortest paths")
@pytest.mark.parametrize("seed", range(5))
def test_the_walker_takes_the_shortest_way(seed):
    world = Grid(walls=0.3)
    maze = world.draw(Random(seed))
    size = maze.size
    edges = np.zeros((size * size, size * size))
    for row, column in np.ndindex(size, size):
        for other in ((row + 1, column), (row, column + 1)):
            if max(other) < size and not {(row, column), other} & maze.walls:
                edges[row * size + column, other[0] * size + other[1]] = 1
    away = shortest_path(csr_matrix(edges), directed=False, unweighted=True)
    start, goal = (cell[0] * size + cell[1] for cell in (maze.start, maze.goal))
    assert len(solve(world, maze, "x").steps) == away[start, goal] + 1


@pytest.mark.truth("Python's arithmetic on the program as written")
def test_the_calculator_reports_the_value_of_the_program():
    world = Calculator()
    for seed in range(20):
        task = world.draw(Random(seed))
        names = dict(task.given)
        for name, formula in re.findall(r"(v\d+) = ([\w ]+ [-+*] \w+)", world.text(task)):
            names[name] = eval(formula, {}, names) % 1000
        last = solve(world, task, "x").steps[-1]
        assert last.observation == f"reported {names[task.program[-1].name]}"


@dataclass(frozen=True)
class Counting(World[int, int]):
    """Count from 0 to a number, with one wrong action that a test chooses."""

    fault: str | None = None
    name: ClassVar[str] = "counting"

    def draw(self, source):
        return 3

    def text(self, task):
        return f"Count to {task}."

    def start(self, task):
        return 0

    def act(self, task, state, action):
        return state + int(action), f"at {state + int(action)}"

    def decide(self, task, state):
        return "1" if state < task else None

    def thought(self, task, state, action):
        return "On."

    def is_solved(self, task, state):
        return state == task

    def failures(self, task, state, source):
        return [] if self.fault is None else [Fault(self.fault, state)]

    def detours(self, task, state, done, source):
        return self.failures(task, state, source)

    def extras(self, task, state, done, source):
        return self.failures(task, state, source)


@pytest.mark.truth("worked out by hand")
@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("I", None, "no place"),
        ("III", None, "no place"),
        ("I", "1", "no difference"),
        ("I", "0", "equivalent"),
        ("II", "3", "not solved"),
        ("I", "-90", "too long"),
    ],
)
def test_what_is_no_example_is_rejected(kind, fault, reason):
    world = Counting(fault)
    clean = solve(world, 3, "x")
    found = perturb_and_complete(clean, world, 3, kind, Random(1))
    assert found == Rejected(reason)


def test_the_agent_goes_on_from_the_wrong_state():
    world = Counting("-1")
    clean = solve(world, 9, "x")
    found = perturb_and_complete(clean, world, 9, "II", Random(3))
    assert not isinstance(found, Rejected)
    place = found.first_error
    after = [step.observation for step in found.steps[place:]]
    assert after == [f"at {n}" for n in range(place - 1, 10)]
    lazy = perturb_and_complete(clean, world, 9, "I", Random(3), policy=lambda _task, _state: None)
    assert not isinstance(lazy, Rejected)
    assert len(lazy.steps) == lazy.first_error + 1


def test_a_trajectory_that_the_world_does_not_give_is_noticed():
    world = Counting("5")
    clean = solve(world, 3, "x")
    changed = replace(clean, steps=clean.steps[:1] * 3)
    found = perturb_and_complete(changed, world, 3, "III", Random(0))
    assert found == Rejected("prefix changed")


def test_written_lines_are_read(tmp_path, built):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, built.trajectories[:4])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["label"], r["first_error"]) for r in rows] == [
        (t.label, t.first_error) for t in built.trajectories[:4]
    ]
    for row, t in zip(rows, built.trajectories, strict=False):
        assert first_error_of(row["label"], row["first_error"], len(row["steps"])) == t.first_error
        assert row["group"] == t.source
        assert step_text(row["steps"][0], 0).startswith(f"Thought: {t.steps[0].thought}\nAction: ")


def test_errors():
    with pytest.raises(InputError, match="at least one source, world and kind, got 0"):
        build_trajectories(0)
    with pytest.raises(InputError, match="counting gave no error of kind I in 64 tries"):
        build_trajectories(1, worlds=[Counting()])
    world = Counting()
    with pytest.raises(InputError, match="took 64 steps in counting and did not end"):
        complete(world, 100, 0)
