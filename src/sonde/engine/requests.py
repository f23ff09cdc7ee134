"""Requests: the distinct states that instruments need from a pass over the data.

Each request is computed once, whatever the number of instruments that read it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sonde.core.instrument import Instrument, Read, Where
from sonde.core.plan import Part, Split
from sonde.core.state import State, digest
from sonde.core.statistic import Statistic
from sonde.engine.errorbars import Term

States = dict[str, State | None]


@dataclass(frozen=True)
class Task:
    """An instrument and the sites of one of its results."""

    instrument: Instrument
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A state to compute: a statistic, the filter of its rows, and their part of the plan."""

    statistic: Statistic[Any]
    keys: tuple[str, ...]
    where: Where
    part: Part
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest((self.statistic, self.where)))

    @property
    def id(self) -> str:
        """Name of the state in dictionaries and files."""
        return f"{self.digest}|{'&'.join(self.keys)}|{self.part}"

    @property
    def buffer(self) -> tuple[tuple[str, ...], str, Part, bool]:
        """Key of the row buffer: requests with equal keys share a buffer."""
        return self.keys, digest(self.where), self.part, self.is_whole

    @property
    def is_whole(self) -> bool:
        """True if all rows of a unit must go into one ``observe``, to keep groups whole.

        Learners that need whole examples get them batch by batch: a batch holds whole examples.
        """
        kind = self.statistic
        return kind.whole_groups or (kind.whole_examples and kind.merging != "none")


def reads_of(task: Task, split: Split | None) -> dict[str, list[list[Request]]]:
    """Return the requests for each parameter of ``result``, with a list for each site.

    A list of two holds the parts ``fit`` and ``held``, whose states merge to the state of all rows.
    """
    plan: dict[str, list[list[Request]]] = {}
    for name, read in task.instrument.all_reads().items():
        plan[name] = [
            [Request(read.statistic, keys, read.where, part) for part in _parts(read, split)]
            for keys in targets_of(task, read)
        ]
    return plan


def targets_of(task: Task, read: Read) -> list[tuple[str, ...]]:
    """Return the sites of each state that a task reads: all together, or one by one."""
    if read.statistic.span == "pair" or task.instrument.span == "one":
        return [task.keys]
    return [(key,) for key in task.keys]


def _parts(read: Read, split: Split | None) -> tuple[Part, ...]:
    if split is None:
        return ("all",)
    if read.part in (None, "all"):
        return ("fit", "held")
    return (read.part,)


def requests(tasks: Iterable[Task], split: Split | None = None) -> dict[str, Request]:
    """Return every distinct request of the tasks by id, in a fixed order."""
    distinct: dict[str, Request] = {}
    for task in tasks:
        for groups in reads_of(task, split).values():
            for group in groups:
                distinct.update((request.id, request) for request in group)
    return dict(sorted(distinct.items()))


def terms_of(task: Task, split: Split | None = None) -> list[Term]:
    """Return the states that a task's result reads, for its error bar."""
    terms: list[Term] = []
    for name, targets in reads_of(task, split).items():
        first = targets[0][0]
        one_value = task.instrument.span == "one" or len(first.keys) > 1
        terms += [
            Term(name, None if one_value else i, group[0].statistic, group[0].keys)
            for i, group in enumerate(targets)
        ]
    return terms
