"""Committed results of a pass: one file for each aligned range of units.

A unit counts once because there is no running sum on disk: a commit is one rename of a file that
holds the states of its own units alone, and merging happens over a set of disjoint ranges. The tree
of merges is fixed by the units' indices, so the bits do not depend on workers, order or kills.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import StateError, StoreError
from sonde.core.plan import Plan
from sonde.core.state import canonical_json, require_finite
from sonde.core.wording import plural
from sonde.engine.passes import merge_states
from sonde.engine.requests import Request, States
from sonde.files import durable
from sonde.files.identity import MODEL_FACTS, PARTS, describe_difference
from sonde.files.part_facts import describe_part, difference_of_parts
from sonde.files.places import to_path
from sonde.files.state_file import check_state, read_state, state_type, write_state
from sonde.run.passes.units import (
    Counters,
    Range,
    Units,
    add_counters,
    gaps,
    join_units,
    nodes,
    units_of,
)

Merge = Callable[[Mapping[str, Request], States, States], States]

PLAN = "plan.json"
STATES = "states"
FIELDS = {
    "n_examples": "{its[n_examples]} examples, not {own[n_examples]}",
    "threads": "threads={its[threads]} in each worker, not {own[threads]}, which rounds otherwise; "
    "pass threads={its[threads]} to go on",
    "requests": "other methods or options of methods",
    "bounds": "another unit_size, or other groups",
    "split": "another part of the rows held for calibration",
}
"""What differs between two plans for the same rows, by the field of a plan."""
FOLD_BYTES = 64 * 2**20

_log = logging.getLogger("sonde")


class Ledger:
    """The commits of a plan, in a run directory.

    Opening it starts or resumes the run: leftovers of a killed run are removed and interrupted
    merges finished. Damaged files are removed and their units done again. If several processes
    share a directory, one of them opens the ledger under a ``RunLock``; the others are workers.

    Parameters
    ----------
    directory : path
        The run directory; made if it is not there.
    plan : Plan
    requests : mapping of id to Request
        The requests whose states are committed.
    merge : callable, default=``passes.merge_states``
        ``merge(requests, left, right)``.
    durable : bool, default=True
        Sync every commit; not needed for temporary runs.
    worker : bool, default=False
        Only add commits: another process has opened the ledger and compacts it.
    fresh : bool, default=False
        Drop what another run left in the directory.

    Attributes
    ----------
    resumed : bool
        Whether the directory already held this plan.

    Raises
    ------
    StoreError
        If the directory holds another plan, or cannot be written.
    """

    def __init__(
        self,
        directory: Path | str,
        plan: Plan,
        requests: Mapping[str, Request],
        merge: Merge = merge_states,
        *,
        durable: bool = True,
        worker: bool = False,
        fresh: bool = False,
    ) -> None:
        self.directory = to_path(directory)
        self.plan, self.requests, self.durable = plan, dict(requests), durable
        self._merge = merge
        self._types = {i: state_type(r.statistic) for i, r in self.requests.items()}
        self._states = self.directory / STATES
        self.resumed = False
        if not worker:
            self._start(fresh)

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges of units still to do: whole commits, or aligned parts of a commit."""
        done = self._committed()
        todo: list[tuple[int, int]] = []
        for start, stop in self.plan.commits():
            open_ends = gaps(start, stop, done)
            todo += [
                (r.start, r.stop) for a, b in open_ends for r in nodes(a, b, self.plan.n_units)
            ]
        return todo

    @property
    def n_done(self) -> int:
        """Number of committed units."""
        return sum(r.stop - r.start for r in self._committed())

    def put(self, start: int, stop: int, states: States, counters: Counters) -> None:
        """Commit the states of the units ``[start, stop)`` atomically; the bytes are reproducible.

        Raises
        ------
        StateError
            If the range is not a node of the merge tree.
        """
        place = Range(start, stop)
        if not place.is_node(self.plan.n_units):
            raise StateError(
                f"Ledger.put: expected an aligned range of 2^j units below {self.plan.n_units}, "
                f"got [{start}, {stop})."
            )
        if not any(done.covers(place) for done in self._listed()):
            self._write(place, states, counters)

    def adopt(self, name: str, content: bytes) -> None:
        """Commit a range's file that a worker on another machine wrote.

        Raises
        ------
        StateError
            If the name names no range of this plan. A damaged file is removed instead.
        """
        place = Range.named(name)
        if place is None or not place.is_node(self.plan.n_units):
            raise StateError(f"Ledger.adopt: expected the name of a range, got {name!r}.")
        if any(done.covers(place) for done in self._listed()):
            return
        durable.atomic_write(self._states / place.name, content, self.durable, once=True)
        self._is_sound(place)

    def compact(self) -> None:
        """Merge committed neighbours as far up the tree as possible, and remove covered files.

        Several levels of small states are merged before a file is written: the more commits wait,
        the less each costs.
        """
        while (merge := self._next_merge()) is not None:
            top, parts = merge
            try:
                states, counters = self._folded(parts)
            except StateError:
                if all(self._is_sound(part) for part in parts):
                    raise
                continue
            except StoreError:
                if all((self._states / part.name).exists() for part in parts):
                    raise
                continue
            self._write(top, states, counters)
            for part in parts:
                self._remove(part)
        for covered in self._covered():
            self._remove(covered)

    def finish(self) -> tuple[States, Counters]:
        """Return the states and counters of the whole plan, folded along the fixed tree.

        Raises
        ------
        StateError
            If units are missing.
        """
        missing = self.missing()
        if missing:
            raise StateError(
                f"Ledger.finish: {sum(b - a for a, b in missing)} of "
                f"{plural(self.plan.n_units, 'unit')} are "
                f"not committed, the first at {missing[0][0]}. Run them, then finish."
            )
        self.compact()
        states: States = dict.fromkeys(self.requests)
        counters: Counters = {}
        for place in reversed(self._committed()):
            left, left_counters = self._read(place)
            states = self._merge(self.requests, left, states)
            counters = add_counters(left_counters, counters)
        return states, counters

    def partial(self) -> tuple[States, Counters, Units]:
        """Return the states and counters of all commits so far, and the units that they cover.

        Changes nothing, so another process may call it.
        """
        places, units = self._committed(), Units()
        for place in places:
            units = join_units(units, units_of(place))
        stack = self._nodes(places)
        while len(stack) > 1:
            stack[-2:] = [self._together(stack[-2], stack[-1])]
        if not stack:
            return dict.fromkeys(self.requests), {}, []
        return stack[0][1], stack[0][2], units

    def remove(self) -> None:
        """Remove the run's own files, and the directory if nothing else is in it."""
        for path in [*self._states.glob("*.sonde"), *self._leftovers(), self.directory / PLAN]:
            durable.remove(path)
        for directory in (self._states, self.directory):
            if directory.exists() and not any(directory.iterdir()):
                directory.rmdir()

    def _start(self, fresh: bool) -> None:
        durable.make_directory(self._states)
        path = self.directory / PLAN
        for leftover in self._leftovers():
            durable.remove(leftover)
        text = (canonical_json(self.plan.json()) + "\n").encode()
        head = _head_of(path, len(text) + 1)
        if head not in (None, text) and not fresh:
            raise StoreError(
                f"Ledger: {self.directory} holds a run of another plan ({self._difference(path)}). "
                "Run with --fresh to delete that run, or write to another path."
            )
        self.resumed = head == text and not fresh
        if head != text:
            durable.atomic_write(path, text, self.durable, once=head is None)
        for place in self._listed():
            if fresh or not self._is_sound(place):
                self._remove(place)
        self.compact()

    def _difference(self, path: Path) -> str:
        """Return in what the plan that a directory holds differs from this plan."""
        own = json.loads(canonical_json(self.plan.json()))
        try:
            its = json.loads(path.read_text("utf-8"))
            one, other = own.pop("stream"), its.pop("stream")
        except (ValueError, KeyError):
            return "its file cannot be read"
        apart = describe_difference(one, other, MODEL_FACTS)
        if apart is not None:
            return apart
        both = [stream.get(PARTS) or {} for stream in (one, other)]
        parts = [describe_part(part, *both) for part in difference_of_parts(*both)]
        if parts:
            return parts[0]
        differ = [words for key, words in FIELDS.items() if own.get(key) != its.get(key)]
        words = differ[0] if differ and one == other else "other data or sites"
        return words.format(its=its, own=own)

    def _leftovers(self) -> Iterator[Path]:
        for directory in (self.directory, self._states):
            yield from directory.glob(f"*{durable.TEMPORARY}*")

    def _listed(self) -> list[Range]:
        """Return every range that has a file, in order; a longer range before those inside it."""
        named = (Range.named(path.name) for path in self._states.iterdir())
        nodes_only = (r for r in named if r is not None and r.is_node(self.plan.n_units))
        return sorted(nodes_only, key=lambda r: (r.start, -r.stop))

    def _committed(self) -> list[Range]:
        """Return the committed ranges that no larger committed range covers."""
        kept: list[Range] = []
        for place in self._listed():
            if not (kept and kept[-1].covers(place)):
                kept.append(place)
        return kept

    def _covered(self) -> list[Range]:
        kept = set(self._committed())
        return [place for place in self._listed() if place not in kept]

    def climb(self, start: int, stop: int) -> None:
        """Merge a committed range with its committed neighbour, and repeat up the tree.

        The worker that commits the second of two neighbours merges them. If two workers merge the
        same pair, they write the same bytes; a part that comes late is covered and does not count.
        """
        place = Range(start, stop)
        while (sibling := place.sibling) is not None:
            left, right = sorted((place, sibling))
            if not all((self._states / part.name).exists() for part in (left, right)):
                return
            try:
                states, counters = self._folded((left, right))
            except (StateError, StoreError):
                return  # merged by another meanwhile, or damaged: the driver looks into it
            place = Range(left.start, right.stop)
            self._write(place, states, counters)
            self._remove(left)
            self._remove(right)

    def _next_merge(self) -> tuple[Range, list[Range]] | None:
        """Return the next node of the tree to write, with the ranges that it merges, or None."""
        stack: list[tuple[Range, list[Range], int]] = []
        for place in self._committed():
            stack.append((place, [place], self._size(place)))
            while len(stack) > 1 and stack[-2][0].sibling == stack[-1][0]:
                (left, before, n), (right, after, m) = stack[-2:]
                if len(before) + len(after) > 2 and n + m > FOLD_BYTES:
                    break
                stack[-2:] = [(Range(left.start, right.stop), before + after, n + m)]
        return next(((top, parts) for top, parts, _ in stack if len(parts) > 1), None)

    def _size(self, place: Range) -> int:
        try:
            return (self._states / place.name).stat().st_size
        except OSError:
            return 0

    def _folded(self, parts: Sequence[Range]) -> tuple[States, Counters]:
        """Return the merged states and counters of adjacent ranges that form one node."""
        _, states, counters = self._nodes(parts)[0]
        return states, counters

    def _nodes(self, parts: Sequence[Range]) -> list[tuple[Range, States, Counters]]:
        """Return the nodes of the tree that adjacent ranges form, merged."""
        stack: list[tuple[Range, States, Counters]] = []
        for place in parts:
            stack.append((place, *self._read(place)))
            while len(stack) > 1 and stack[-2][0].sibling == stack[-1][0]:
                stack[-2:] = [self._together(stack[-2], stack[-1])]
        return stack

    def _together(
        self, left: tuple[Range, States, Counters], right: tuple[Range, States, Counters]
    ) -> tuple[Range, States, Counters]:
        return (
            Range(left[0].start, right[0].stop),
            self._merge(self.requests, left[1], right[1]),
            add_counters(left[2], right[2]),
        )

    def _write(self, place: Range, states: States, counters: Counters) -> None:
        require_finite(states)
        header = {"plan": self.plan.id, "units": units_of(place), "counters": counters}
        write_state(self._states / place.name, header, states, self.durable, once=True)

    def _read(self, place: Range) -> tuple[States, Counters]:
        header, states = read_state(self._states / place.name, self._types)
        self._check(place, header)
        return states, header["counters"]

    def _is_sound(self, place: Range) -> bool:
        """Return whether a range's file is intact and matches its name; remove the file if not."""
        try:
            self._check(place, check_state(self._states / place.name))
        except StateError as error:
            _log.warning(
                "units %d to %d are computed again: %s", place.start, place.stop - 1, error
            )
            self._remove(place)
            return False
        return True

    def _check(self, place: Range, header: dict[str, Any]) -> None:
        if header.get("plan") != self.plan.id or header.get("units") != units_of(place):
            raise StateError(
                f"Ledger: {place.name} holds units {header.get('units')} of plan "
                f"{header.get('plan')!r}. Remove the file."
            )
        if not isinstance(header.get("counters"), dict):
            raise StateError(f"Ledger: {place.name} has no counters. Remove the file.")

    def _remove(self, place: Range) -> None:
        durable.remove(self._states / place.name)


def _head_of(path: Path, n_bytes: int) -> bytes | None:
    """Return the first bytes of a file, or None if the file is missing."""
    try:
        with path.open("rb") as file:
            return file.read(n_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"could not read {path}: {error.strerror}. Check the path.") from error
