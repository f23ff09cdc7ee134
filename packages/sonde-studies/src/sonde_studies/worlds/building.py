"""A balanced set of correct and wrong trajectories, and baselines that do not read them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from sonde import InputError
from sonde.stats import auroc
from sonde_studies.worlds.calculator import Calculator
from sonde_studies.worlds.grid import Grid
from sonde_studies.worlds.perturb import KINDS, Kind, Rejected, perturb_and_complete
from sonde_studies.worlds.world import Trajectory, World, solve

TRIES = 64
WORLDS: tuple[World[Any, Any], ...] = (Calculator(), Grid())


@dataclass(frozen=True)
class Built:
    """Pairs of trajectories of each source, correct before wrong.

    ``rejected`` counts perturbations that gave no trajectory, by reason.
    """

    trajectories: tuple[Trajectory, ...]
    rejected: dict[str, int]

    def length_auroc(self) -> float:
        """Return the AUROC of the step count alone for wrong trajectories; 0.5 is chance."""
        length = torch.tensor([len(t.steps) for t in self.trajectories], dtype=torch.float64)
        wrong = torch.tensor([t.label == 1 for t in self.trajectories])
        area = auroc(length[~wrong], length[wrong]).value
        return max(area, 1.0 - area)

    def step_prior(self) -> float:
        """Return the fraction of wrong trajectories with the most frequent error step."""
        places = Counter(t.first_error for t in self.trajectories if t.label)
        return max(places.values()) / sum(places.values())


def build_trajectories(
    n_sources: int,
    *,
    worlds: Sequence[World[Any, Any]] = WORLDS,
    kinds: Sequence[Kind] = KINDS,
    seed: int = 0,
) -> Built:
    """Return a correct and a wrong trajectory for several tasks, kinds and worlds in turn.

    Parameters
    ----------
    n_sources : int
        Number of tasks.
    worlds : sequence of World
    kinds : sequence of {"I", "II", "III"}
    seed : int, default=0
        The same seed gives the same set.

    Raises
    ------
    InputError
        If a world gives no error of a kind in many tries.

    Examples
    --------
    >>> built = build_trajectories(6)
    >>> [(t.label, t.kind) for t in built.trajectories[:4]]
    [(0, ''), (1, 'I'), (0, ''), (1, 'I')]
    """
    if n_sources < 1 or not worlds or not kinds:
        raise InputError(
            f"build_trajectories: expected at least one source, world and kind, got {n_sources}, "
            f"{len(worlds)} and {len(kinds)}."
        )
    found: list[Trajectory] = []
    rejected: Counter[str] = Counter()
    for number in range(n_sources):
        world = worlds[number % len(worlds)]
        kind = kinds[number // len(worlds) % len(kinds)]
        found += _pair(world, kind, number, seed, rejected)
    return Built(tuple(found), dict(sorted(rejected.items())))


def _pair(
    world: World[Any, Any], kind: Kind, number: int, seed: int, rejected: Counter[str]
) -> tuple[Trajectory, Trajectory]:
    """Return a correct and a wrong trajectory of the first task that can fail."""
    for attempt in range(TRIES):
        source = Random(_number(f"{world.name}|{seed}|{number}|{attempt}"))
        task = world.draw(source)
        clean = solve(world, task, f"{world.name}-{seed}-{number}")
        wrong = perturb_and_complete(clean, world, task, kind, source)
        if not isinstance(wrong, Rejected):
            return clean, wrong
        rejected[wrong.reason] += 1
    raise InputError(
        f"build_trajectories: {world.name} gave no error of kind {kind} in {TRIES} tries. "
        "Leave this kind out (kinds=)."
    )


def split_of(
    trajectories: Sequence[Trajectory], test: float = 0.2, seed: int = 0
) -> list[Literal["train", "test"]]:
    """Return each trajectory's split, by a hash of its source; pairs stay together."""
    places = (_number(f"split|{seed}|{t.source}") / 2**64 for t in trajectories)
    return ["test" if place < test else "train" for place in places]


def _number(key: str) -> int:
    """Return a 64-bit number that depends only on the key."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def write_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Write JSON Lines that ``sonde.read`` and the commands take."""
    lines = (json.dumps(trajectory.row(), ensure_ascii=False) + "\n" for trajectory in trajectories)
    Path(path).write_bytes("".join(lines).encode())
