"""Output of commands: results to stdout, everything else to stderr."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

REMARK = "note: "
MOST_PLACES = 2
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_remarks: ContextVar[list[tuple[str, str]] | None] = ContextVar("remarks", default=None)

typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
"""Words typed after ``sonde``."""

begun: ContextVar[float] = ContextVar("begun")
"""When the command began, in seconds since the epoch: before torch was imported."""


further_pages: ContextVar[tuple[Path, ...]] = ContextVar("further_pages", default=())
"""Pages to write beside the output, where ``-o`` was typed more than once."""


class CommandFailed(Exception):
    """End of a command that has printed its reason, with an exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def error_line(text: str) -> None:
    """Write one line of error to stderr."""
    sys.stderr.write(f"error: {' '.join(text.split())}\n")


def note_interrupted(directory: Path | None) -> None:
    """Print that the user stopped a command, what is kept, and how to continue."""
    if directory is None:
        error_line("interrupted. No incomplete file is left; run the same command again.")
    else:
        error_line(
            f"interrupted. Finished work is kept in {directory}; the same command continues "
            "from there."
        )


def say(text: str) -> None:
    """Write text to stdout; characters that the terminal cannot show are replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    safe = text.encode(encoding, "replace").decode(encoding)
    sys.stdout.write(safe if safe.endswith("\n") else safe + "\n")


def note(text: str, at: str = "") -> None:
    """Write a line to stderr; within a command a remark ("note: ...") waits for ``noting``.

    Parameters
    ----------
    text : str
    at : str, default=""
        Subject of a remark: equal remarks share a line that names all their subjects.
    """
    remarks = _remarks.get()
    if remarks is not None and text.startswith(REMARK):
        remarks.append((text.removeprefix(REMARK), at))
    else:
        sys.stderr.write(f"{text}\n")


def at_once(text: str) -> None:
    """Write a line to stderr immediately, also a remark, while a command is still running."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def noting(verbose: bool = False) -> Iterator[None]:
    """Print the remarks of a command at its end; remarks that differ only in numbers share a line.

    Parameters
    ----------
    verbose : bool
        Whether remarks that differ only in numbers each have a line of their own.
    """
    remarks: list[tuple[str, str]] = []
    token = _remarks.set(remarks)
    try:
        yield
    finally:
        _remarks.reset(token)
        sys.stderr.write("".join(f"{REMARK}{line}\n" for line in told_once(remarks, verbose)))


def told_once(remarks: Sequence[tuple[str, str]], verbose: bool = False) -> list[str]:
    """Return distinct remarks in order of first appearance, with their counts.

    Examples
    --------
    >>> told_once([("1 of 9 lost.", "a"), ("Read it.", ""), ("2 of 9 lost.", "b")])
    ['a, b: 1 of 9 lost. (1 more with other numbers: -v)', 'Read it.']
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for text, at in remarks:
        alike.setdefault(text if verbose else _NUMBER.sub("#", text), []).append((text, at))
    return [_told(same) for same in alike.values()]


def _told(same: Sequence[tuple[str, str]]) -> str:
    places = [at for at in dict.fromkeys(at for _, at in same) if at]
    more = len(places) - MOST_PLACES
    where = ", ".join(places[:MOST_PLACES]) + (f" and {more:,} more" if more > 0 else "")
    others, times = len({text for text, _ in same}) - 1, len(same) // max(len(places), 1)
    count = f" ({others:,} more with other numbers: -v)" if others else ""
    count = count or (f" ({times:,} times)" if times > 1 else "")
    return f"{where}{': ' if where else ''}{same[0][0]}{count}"


def say_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def use_color(no_color: bool) -> bool:
    """Return whether stdout is a terminal with colours."""
    return not no_color and not os.environ.get("NO_COLOR") and sys.stdout.isatty()


def is_ascii() -> bool:
    """Return whether stdout can show only ASCII."""
    return (sys.stdout.encoding or "ascii").lower().replace("-", "") not in ("utf8", "utf8sig")
