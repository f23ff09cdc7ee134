"""Lines of a long table, kept in a file so that a later run goes on where one stopped."""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path


class TimeOver(Exception):
    """The run has used its time; the lines so far are in the file."""


class KeptLines:
    """Cells of the lines of a table by their keys.

    Parameters
    ----------
    path : Path or None
        File with a line of JSON for each line of the table; None keeps nothing.
    seconds : float, default=inf
        Time after which no further line is measured.
    """

    def __init__(self, path: Path | None, seconds: float = math.inf) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        self.cells = dict[str, list[str]]()
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self.cells = dict(json.loads(line) for line in lines)

    def line(self, key: str, measure: Callable[[], list[str]]) -> list[str]:
        """Return the kept cells of a line, or measure and keep them.

        Raises
        ------
        TimeOver
            If the line would have to be measured after the time of the run.
        """
        if key not in self.cells:
            if time.monotonic() > self.end:
                raise TimeOver
            self.cells[key] = measure()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self.cells[key]]) + "\n")
        return self.cells[key]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--into`` and ``--seconds`` to the command line of a table."""
    parser.add_argument("--into", type=Path, help="file that keeps the lines of the table")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after this time")
