"""Tables of a command: aligned, as wide as the terminal, with whole names in a pipe."""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap

LEAST_NAME = 12
LEAST_TEXT = 20
LEAST_WIDTH = 40
PIPE_WIDTH = 80
_DRAWN = re.compile("[\u2500-\u257f\x1b]")


def terminal_width() -> int | None:
    """Return the terminal's width in columns, or None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def text_width() -> int:
    """Return the width of running text: the terminal's, from 40 to 80; 80 in a pipe."""
    return min(max(terminal_width() or PIPE_WIDTH, LEAST_WIDTH), PIPE_WIDTH)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], shrinks: int = 1) -> str:
    """Return rows under their titles: the first two columns left-aligned, all others right.

    Parameters
    ----------
    titles : sequence of str
    rows : sequence of sequences of str
    shrinks : int, default=1
        The column whose cells are cut in the middle if a line does not fit the terminal.
    """
    lines = [list(titles), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    room = terminal_width()
    if room is not None:
        rest = sum(widths) - widths[shrinks] + 2 * (len(widths) - 1)
        widths[shrinks] = min(widths[shrinks], max(LEAST_NAME, room - rest))
    return "\n".join(_line(line, widths, shrinks) for line in lines)


def legend(meanings: Mapping[str, str]) -> str:
    """Return the legend of a table, wrapped to the terminal; to 80 columns in a pipe."""
    first = max(map(len, meanings), default=0) + 2
    width = max(terminal_width() or PIPE_WIDTH, first + LEAST_TEXT)
    lines: list[str] = []
    for word, text in meanings.items():
        head, rest = word.ljust(first), " " * first
        lines += wrap(text, width, initial_indent=head, subsequent_indent=rest)
    return "\n".join(lines)


_CONTINUED = re.compile(r"(: sonde [^\n]*)\n[ ]*(--?\w)")
"""A command that is broken before a flag, which then stands on the next line."""


def filled(text: str) -> str:
    r"""Wrap the long lines of a text to the terminal; broken commands end in a backslash.

    Examples
    --------
    >>> lines = filled("one two three " * 99).splitlines()
    >>> max(map(len, lines)) <= shutil.get_terminal_size().columns, lines[0][:13]
    (True, 'one two three')
    """
    width = shutil.get_terminal_size().columns
    return "\n".join(
        line if len(line) <= width or _DRAWN.search(line) else _filled(line, width)
        for line in _CONTINUED.sub(r"\1 \2", text).splitlines()
    )


def _filled(line: str, width: int) -> str:
    end = " \\" if re.search(": sonde [^;]*$", line) else ""
    room = max(width - len(end), LEAST_TEXT)
    rows = wrap(
        line,
        room,
        subsequent_indent="  " if end else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(rows)


def middle(text: str, width: int) -> str:
    """Cut a name in its middle to at most ``width`` characters; more of the end is kept.

    Examples
    --------
    >>> middle("model.layers.11.mlp.down_proj", 17)
    'model...down_proj'
    """
    if len(text) <= width:
        return text
    end = (width - 3) * 2 // 3
    return f"{text[: width - 3 - end]}...{text[len(text) - end :]}"


def _line(cells: Sequence[str], widths: Sequence[int], shrinks: int) -> str:
    out = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        cell = middle(cell, width) if i == shrinks else cell
        out.append(cell.ljust(width) if i < 2 else cell.rjust(width))
    return "  ".join(out).rstrip()


def between(low: float | None, high: float | None, word: str = "-") -> str:
    """Format an interval."""
    return "-" if None in (low, high) else f"{share(low)}{word}{share(high)}"


def share(value: float | None) -> str:
    """Format a number with three decimals; a dash for None."""
    return "-" if value is None else f"{value:.3f}"
