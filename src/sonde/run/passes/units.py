"""Ranges of units as nodes of the fixed tree of merges, and the sums of their counters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sonde.core.errors import StateError

Counters = dict[str, Any]
Units: TypeAlias = list[list[int]]

_NAME = re.compile(r"^(\d{1,12})-(\d{1,12})\.sonde$")


@dataclass(frozen=True, order=True)
class Range:
    """The units ``[start, stop)``."""

    start: int
    stop: int

    @classmethod
    def named(cls, name: str) -> "Range | None":
        """Return the range in a commit's file name; None for other files."""
        match = _NAME.match(name)
        return None if match is None else cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """Name of the file that commits this range."""
        return f"{self.start}-{self.stop}.sonde"

    def covers(self, other: "Range") -> bool:
        """Return whether ``other`` is a smaller range inside this range."""
        return self != other and self.start <= other.start and other.stop <= self.stop

    def is_node(self, n_units: int) -> bool:
        """Return whether the merge tree has this range: aligned, and full or cut at the end."""
        length = 1 << max(self.stop - self.start - 1, 0).bit_length()
        whole = self.stop - self.start == length or self.stop == n_units
        inside = 0 <= self.start < self.stop <= n_units
        return inside and whole and self.start % length == 0

    @property
    def sibling(self) -> "Range | None":
        """The range of equal length that this range is merged with; None for a cut range."""
        length = self.stop - self.start
        if length & (length - 1) or self.start % length:
            return None
        start = self.start ^ length
        return Range(start, start + length)


def nodes(start: int, stop: int, n_units: int) -> list[Range]:
    """Return the largest nodes of the merge tree that together form ``[start, stop)``.

    Examples
    --------
    >>> [(r.start, r.stop) for r in nodes(3, 11, 11)]
    [(3, 4), (4, 8), (8, 11)]
    """
    ranges: list[Range] = []
    while start < stop:
        length = start & -start if start else 1 << n_units.bit_length()
        while not Range(start, min(start + length, n_units)).is_node(n_units) or (
            min(start + length, n_units) > stop
        ):
            length >>= 1
        ranges.append(Range(start, min(start + length, n_units)))
        start = ranges[-1].stop
    return ranges


def join_units(a: Units, b: Units) -> Units:
    """Return the union of two sets of units, given as sorted closed intervals.

    Raises
    ------
    StateError
        If they overlap: their rows would count twice.

    Examples
    --------
    >>> join_units([[0, 3], [8, 9]], [[4, 7]])
    [[0, 9]]
    """
    joined: Units = []
    for first, last in sorted([*a, *b]):
        if joined and first <= joined[-1][1]:
            raise StateError(
                f"merge: both states were fitted on the same part of the data: units {_spans(a)} "
                f"and {_spans(b)} overlap, so rows would count twice. Merge only states that "
                "were fitted on different data."
            )
        if joined and first == joined[-1][1] + 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return joined


def _spans(units: Units) -> str:
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in units)


def units_of(place: Range) -> Units:
    """Return the units of a range as a closed interval."""
    return [[place.start, place.stop - 1]]


def gaps(start: int, stop: int, done: Sequence[Range]) -> list[tuple[int, int]]:
    """Return the parts of ``[start, stop)`` that no range in ``done`` covers, as (start, stop).

    Examples
    --------
    >>> gaps(0, 8, [Range(2, 4)])
    [(0, 2), (4, 8)]
    """
    missing: list[tuple[int, int]] = []
    for place in done:
        if place.stop <= start or place.start >= stop:
            continue
        if place.start > start:
            missing.append((start, place.start))
        start = max(start, place.stop)
    if start < stop:
        missing.append((start, stop))
    return missing


def add_counters(a: Counters, b: Counters) -> Counters:
    """Return the sums of two trees of counts; a count that only one tree holds is kept."""
    total = dict(a)
    for name, value in b.items():
        old = total.get(name)
        if isinstance(value, dict):
            total[name] = add_counters(old or {}, value)
        else:
            total[name] = value + (old or 0)
    return total
