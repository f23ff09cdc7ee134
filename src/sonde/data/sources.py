"""Sources of items: rows of named values, read in order or by index."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int

from sonde.core.errors import InputError
from sonde.core.wording import plural

Row = Mapping[str, Any]
SAMPLE_ROWS = 20
MISSING_TYPES = ("NAType", "NaTType")


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, an empty text, NaN, or pandas' NA and NaT.

    Examples
    --------
    >>> is_missing(None), is_missing(""), is_missing(float("nan")), is_missing(0)
    (True, True, True, False)
    """
    if value is None or type(value).__name__ in MISSING_TYPES:
        return True
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return isinstance(value, str) and not value


class Source(ABC):
    """Rows of named values: streamed once for the listing, then read by index.

    ``rows`` may leave out broken records if that was asked for (``n_bad`` counts them); ``take``
    and ``where`` count the rows that it yields, ``numbers`` says which items these are. All rows
    have the same columns, unless ``rows_differ``. ``split`` is None if data have no splits;
    ``by_name`` says that files are read in the order of their names, which nobody chose.
    ``prompt_column`` holds the beginning of each row's text that is its prompt, if rows have one.
    """

    name: str = ""
    n_bad: int = 0
    split: str | None = None
    other_splits: tuple[str, ...] = ()
    split_was_named: bool = False
    rows_differ: bool = False
    by_name: bool = False
    prompt_column: str | None = None

    def of_split(self, split: str, known: Iterable[str], was_named: bool) -> "Source":
        """Record the data set's split of the rows, and whether the user named it."""
        self.split, self.split_was_named = split, was_named
        self.other_splits = tuple(name for name in known if name != split)
        return self

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield every row in order and record its location."""

    @abstractmethod
    def take(self, start: int, stop: int) -> list[Row]:
        """Return the rows ``[start, stop)`` in the order of ``rows``."""

    @property
    def base(self) -> Path:
        """The folder that relative paths in rows start from."""
        return Path()

    def where(self, index: int) -> str:
        """Return the location of a row for messages."""
        return f"{self.place(index)} of {self.name}"

    def place(self, index: int) -> str:
        """Return the location of a row for reports: a file, a line, or an index from 0."""
        return f"item {index}"

    def numbers(self, rows: Int[np.ndarray, "_row"]) -> Int[np.ndarray, "_row"]:
        """Return the indices of rows among all stored items, broken ones included, from 0."""
        return rows

    def columns(self, wanted: Iterable[str] = ()) -> dict[str, list[Any]]:
        """Return the names of the columns with the values of the first rows.

        If rows may differ, the wanted columns are searched in all rows.
        """
        values: dict[str, list[Any]] = {}
        missing = set(wanted)
        for number, row in enumerate(self.rows()):
            if number >= SAMPLE_ROWS and not (self.rows_differ and missing):
                break
            names = row if number < SAMPLE_ROWS else missing & row.keys()
            for name in names:
                values.setdefault(name, []).append(row[name])
            missing -= values.keys()
        return values

    def labels(self, column: str) -> Iterator[Any] | None:
        """Yield a column of every row without building inputs; None if that is not cheaper."""
        return None

    def names_of(self, column: str) -> Sequence[str] | None:
        """Return the class names behind the integers of a label column, or None."""
        return None


@final
class Walk:
    """Reads rows by index from an iterable, from its position or from the start."""

    def __init__(self, start: Callable[[], Iterator[Row]]) -> None:
        self._start = start
        self._rows: Iterator[Row] | None = None
        self._next = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Walk, (self._start,)  # another process starts its own walk

    @property
    def position(self) -> int:
        """The index of the next row."""
        return self._next

    def take(self, start: int, stop: int, name: str) -> list[Row]:
        """Return the rows ``[start, stop)``."""
        if self._rows is None or start < self._next:
            self._rows, self._next = self._start(), 0
        out: list[Row] = []
        while self._next < stop:
            row = next(self._rows, None)
            if row is None:
                raise InputError(
                    f"{name} gave only {plural(self._next, 'item')} the second time. Pass an "
                    "iterable that returns the same items each time."
                )
            if self._next >= start:
                out.append(row)
            self._next += 1
        return out
