"""What the runner prints: rows of a table, which a file can keep so that a later run goes on."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro

T = TypeVar("T")
Words = tyro.conf.Positional[tuple[str, ...]]
"""Words of the command line; they choose lines, those whose name holds one of the words."""


@dataclass(frozen=True)
class Row:
    """A row of a Markdown table: its first cells, and how the others are measured."""

    names: tuple[object, ...]
    measure: Callable[[], Sequence[str]]


Table = Iterator[str | Row]
"""What a figure yields: rows, and lines that are printed as they are."""


def head(*titles: str) -> str:
    """Return the head of a Markdown table."""
    return (
        "|"
        + "".join(f" {title} |" if title else " |" for title in titles)
        + "\n|"
        + ("---|" * len(titles))
    )


def chosen(names: Mapping[str, T], words: Sequence[str]) -> Iterator[tuple[str, T]]:
    """Yield the entries whose name holds one of the words; all without words."""
    for name, entry in names.items():
        if not words or any(word.lower() in name.lower() for word in words):
            yield name, entry


class TimeOver(Exception):
    """The run has used its time; the rows so far are in the file."""


class KeptRows:
    """Cells of the rows of a table by their keys.

    Parameters
    ----------
    path : Path or None
        File with a line of JSON for each row of the table; None keeps nothing.
    seconds : float, default=inf
        Time after which no further row is measured.
    """

    def __init__(self, path: Path | None, seconds: float = math.inf) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        self.cells = dict[str, list[str]]()
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self.cells = dict(json.loads(line) for line in lines)

    def cells_of(self, key: str, row: Row) -> list[str]:
        """Return the kept cells of a row, or measure and keep them.

        Raises
        ------
        TimeOver
            If the row would have to be measured after the time of the run.
        """
        if key not in self.cells:
            if time.monotonic() > self.end:
                raise TimeOver
            self.cells[key] = list(row.measure())
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self.cells[key]]) + "\n")
        return self.cells[key]
