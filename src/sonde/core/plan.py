"""Partition of a run into units and commits, and of the data into fit and held-out rows.

A plan depends on the data and the parameters alone, never on the number of workers, so one worker
and sixty-four make the same bits.
"""

import hashlib
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import fraction
from sonde.core.state import canonical_json

UNIT_SIZE = 256
LONGEST_UNIT = 4
STATE_VERSION = 1

Part = Literal["all", "fit", "held"]


def unit_bounds(group_keys: Sequence[bytes], unit_size: int = UNIT_SIZE) -> list[int]:
    """Return the starts of the units, and the end; units end at groups, at most four times as long.

    Examples
    --------
    >>> unit_bounds([b"a"] * 3 + [b"b"] * 2 + [b"c"] * 4, unit_size=2)
    [0, 3, 5, 9]
    """
    n, bounds = len(group_keys), [0]
    while bounds[-1] < n:
        start = bounds[-1]
        end, limit = start + unit_size, start + LONGEST_UNIT * unit_size
        while end < min(n, limit) and group_keys[end] == group_keys[end - 1]:
            end += 1
        bounds.append(min(end, n))
    return bounds


def groups_are_whole(group_keys: Sequence[Hashable], bounds: Sequence[int]) -> bool:
    """Return whether every group lies inside one unit."""
    seen: set[Hashable] = set()
    for start, stop in itertools.pairwise(bounds):
        here = set(group_keys[start:stop])
        if seen & here:
            return False
        seen |= here
    return True


@dataclass(frozen=True)
class Split:
    """The parts ``fit`` and ``held`` of a plan, chosen by a keyed hash of each row's group.

    Parameters
    ----------
    held : float
        Share of the groups that is held out.
    seed : int, default=0
        Key of the hash.
    cut : float or None, default=None
        Groups whose hash, in [0, 1), is below it are held out; None is ``held`` itself. See
        ``of_groups``.
    """

    held: float
    seed: int = 0
    cut: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.held < 1.0:
            raise InputError(f"Split: expected a held-out fraction in (0, 1), got {self.held}.")

    def is_held(self, split_draw: Tensor) -> Bool[Tensor, "example"]:
        """Return a mask of the held-out examples, from the sampling keys of their groups."""
        return fraction(split_draw) < (self.held if self.cut is None else self.cut)

    def of_groups(self, group_draws: Tensor) -> "Split":
        """Return the split that leaves a group in both parts, from the groups' sampling keys.

        The hash of few groups may leave a part empty. The cut is then moved in the order of the
        hash, to the nearest number of groups; a single group stays where it is.

        Examples
        --------
        >>> import torch
        >>> draws = torch.arange(5) * 2**60 + 2**62  # hashes from 0.25 to 0.5
        >>> split = Split(0.2).of_groups(draws)
        >>> split.is_held(draws).tolist()
        [True, False, False, False, False]
        """
        n, n_held = len(group_draws), int(self.is_held(group_draws).sum())
        if n < 2 or 0 < n_held < n:
            return self
        order = fraction(group_draws).sort().values
        first = min(max(round(self.held * n), 1), n - 1)
        return replace(self, cut=float(order[first - 1 : first + 1].mean()))

    def json(self) -> dict[str, Any]:
        """Return the split as JSON values."""
        entries: dict[str, Any] = {"held": self.held, "seed": self.seed}
        return entries if self.cut is None else entries | {"cut": self.cut}


@dataclass(frozen=True)
class Plan:
    """Plan of a run: its data, its states and its commits.

    Parameters
    ----------
    stream : dict
        The stream's identity: model, data, sites, reducers, order, batch size.
    requests : tuple of str
        Digests of what is computed, in order.
    bounds : tuple of int
        Where units begin in the planned order, and the end.
    split : Split or None
        The parts, if any.
    stage : int, default=0
        Which pass this is.
    commit_level : int, default=0
        A commit is an aligned range of ``2 ** commit_level`` units.
    threads : int or None, default=None
        Threads of each worker; None keeps the caller's setting.
    """

    stream: dict[str, Any]
    requests: tuple[str, ...]
    bounds: tuple[int, ...]
    split: Split | None = None
    stage: int = 0
    commit_level: int = 0
    threads: int | None = None

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.bounds) - 1

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return self.bounds[-1] if self.bounds else 0

    @property
    def id(self) -> str:
        """Hash of all fields: two runs with equal ids give equal bits."""
        return hashlib.blake2b(canonical_json(self.json()).encode(), digest_size=16).hexdigest()

    def json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "version": STATE_VERSION,
            "stream": self.stream,
            "requests": list(self.requests),
            "bounds": hashlib.blake2b(repr(self.bounds).encode(), digest_size=16).hexdigest(),
            "n_units": self.n_units,
            "n_examples": self.n_examples,
            "split": None if self.split is None else self.split.json(),
            "stage": self.stage,
            "commit_level": self.commit_level,
            "threads": self.threads,
        }

    def commits(self) -> list[tuple[int, int]]:
        """Return the ranges of units that workers commit, in order."""
        step = 1 << self.commit_level
        return [(k, min(k + step, self.n_units)) for k in range(0, self.n_units, step)]
