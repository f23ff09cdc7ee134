"""Shifts: instruments that compare two data sets by their fitted states, without rows.

A shift is an instrument: it names the statistics that it reads, and is fitted, merged, sharded and
saved like any other. Its result is one side of a comparison.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.state import State, digest, map_tensors


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """Distance between two data sets; ``value`` is an effect size, and ``null`` is no change.

    Parameters
    ----------
    p : float
        Chance of a statistic at least this large if both sides come from one distribution; NaN only
        together with a flag.
    statistic : float
        The test statistic that ``p`` belongs to.
    sides : (int, int)
        Independent rows of the first and the second side: groups where rows come in groups.
    """

    p: float = math.nan
    statistic: float = math.nan
    sides: tuple[int, int] = (0, 0)
    direction: Direction = "higher"

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return a one-row table with statistic and p-value."""
        table = super().table()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        for name in ("statistic", "p"):
            column: list[float] = [getattr(self, name)] * int(table.num_rows)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            table = table.append_column(name, pa.array(column))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return table  # pyright: ignore[reportUnknownVariableType]


@final
@dataclass(frozen=True, kw_only=True)
class Side(Result):
    """Statistics of one data set, kept for a comparison; ``value`` is the number of rows.

    Parameters
    ----------
    shift : Shift
        With every parameter that was found from the data.
    states : dict of str to State
        By the names of ``shift.reads()``; also a ``sample`` of rows if it was kept, so that rows
        that both sides share can be compared one by one.
    groups : int
        Documents, trajectories or other groups that the rows come from; 0 = each row is its own.
    data : str
        Names the rows if no ``sample`` identifies them; empty = not known.
    """

    shift: "Shift"
    states: dict[str, State] = field(repr=False)
    groups: int = 0
    data: str = ""

    @property
    def independent(self) -> int:
        """Number of independent rows: the smaller of the numbers of rows and of groups."""
        return min(self.n, self.groups) if self.groups else self.n

    def compare(self, other: "Side") -> Comparison:
        """Return the distance of the other side from this side, the reference.

        Raises
        ------
        StateError
            If the other side was made with other parameters.
        InputError
            If a side has too few independent rows.
        """
        if digest(self.shift) != digest(other.shift):
            raise StateError(
                f"Side.compare: expected a side of {self.shift}, got a side of {other.shift}. "
                "Fit the second side with the parameters of the first, `first.shift.fit(rows)`."
            )
        fewest, least = min(self.independent, other.independent), self.shift.least_rows
        if fewest < least:
            raise InputError(
                f"{type(self.shift).__name__}: expected at least {least} independent rows on "
                f"each side, got {fewest}. Give more rows, or rows of more groups."
            )
        return self.shift.compare(self, other)


class Shift(Instrument):
    """An instrument that compares two data sets; its result is a ``Side``.

    Subclasses say what they read and how two sides compare. The first side is the reference; under
    no change ``p`` is uniform, or larger. A parameter that is found from the data is fixed by
    ``then``, and stands in the side's ``shift``.
    """

    least_rows: ClassVar[int] = 2
    estimates: ClassVar[bool] = False
    rows_numbered: ClassVar[bool] = False

    @abstractmethod
    def compare(self, first: Side, second: Side) -> Comparison:
        """Return the distance of the second side from the first. Called by ``Side.compare``."""

    @final
    def result(self, *_: Any, **states: Any) -> Side:
        """Return the states as a ``Side``."""
        return Side(
            value=float(next(iter(states.values())).n),
            n=next(iter(states.values())).n,
            range=(0.0, math.inf),
            conventions={"value": "rows", "se": "not given for a single side: compare two sides"},
            shift=self,
            states={k: map_tensors(v, lambda t: t.detach()) for k, v in states.items()},
        )

    @final
    def fit(self, x: Any, label: Any = None, *, group: Any = None, **columns: Any) -> Side:
        """Fit one side of a comparison to plain rows; see ``Instrument.fit`` for the columns."""
        side: Side = super().fit(x, label, group=group, **columns)
        if group is None:
            return side
        return replace(side, groups=len({str(g) for g in group}))

    @final
    def between(
        self, x: Any, y: Any, *, group: Any = None, group2: Any = None, seed: int = 0
    ) -> Comparison:
        """Return the distance of plain rows ``y`` from plain rows ``x``.

        Parameters
        ----------
        x, y : arrays (row, dim) and (row2, dim)
            The reference and the other data set.
        group, group2 : optional
            Documents of the rows; rows of one group are not taken as independent.
        seed : int, default=0
            Key of the hash of rows.
        """
        first = self.fit(x, group=group, seed=seed)
        return first.compare(first.shift.fit(y, group=group2, seed=seed))
