"""A document as text for a terminal: the verdict, then each section."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from textwrap import wrap
from typing import Final

from sonde.report._format import number, p_value, plural, share, shown, tied
from sonde.report._parts import P_VALUES
from sonde.report._picture import Cell
from sonde.report.document import Command, Document, Drawing, Figure, Finding, Part, Prose, Table

COLUMNS: Final = 80
NARROWEST, GAP = 12, "  "
"""Characters that a text cell keeps if the table is too wide."""


def document_text(
    document: Document, verbose: bool = False, width: int = COLUMNS, room: int = COLUMNS
) -> str:
    """Return a document as lines for a terminal; commands are never broken.

    Parameters
    ----------
    document : Document
    verbose : bool, default=False
        All sections, and every row of their tables.
    width : int, default=80
        Columns that a text takes at most.
    room : int, default=80
        Columns that a table takes at most.
    """
    room = max(room, width)
    lines = [*_wrapped(document.verdict, width)]
    facts = [(name, value) for name, value in document.facts if value]
    if facts:
        lines += ["", *_pairs(facts, width)]
    for note in document.notes:
        lines += ["", *_wrapped(note, width)]
    for section in document.kept():
        if not _is_said(section.where, verbose):
            continue
        parts = [part for part in section.parts if _is_said(part.where, verbose)]
        if sum(isinstance(part, Table) for part in parts) < 2:  # the label of a drawer repeats
            parts = [replace(p, title="") if isinstance(p, Table) and p.folded is not None else p
                    for p in parts]  # fmt: skip
        body = [_part(part, document, verbose, width, room) for part in parts]
        held = [block for block in body if block]
        if section.parts and not held:
            continue
        lines += ["", section.title, *_wrapped(section.lead, width)]
        before = bool(section.lead)
        for block in held:
            lines += ["", *block] if before and (before > 1 or len(block) > 1) else block
            before = len(block)
    return "\n".join(line.rstrip() for line in lines)


def _is_said(where: str, verbose: bool) -> bool:
    return where in ("both", "terminal") or (verbose and where == "verbose")


def _part(part: Part, document: Document, verbose: bool, width: int, room: int) -> list[str]:
    match part:
        case Prose(text):
            return _wrapped(text, width)
        case Finding(level, code, text):
            return _wrapped(f"{level} {code}  {text}", width)
        case Command(text):
            return [f"  -> {shown(text, 1000)}"]
        case Figure(picture, most, brief):
            text_lines = (
                [] if picture.message == document.verdict else _wrapped(picture.message, width)
            )
            if most and picture.numbers:
                table = Table(picture.numbers, brief=brief, most=most)
                text_lines += _table(table, verbose, width, room)
            return text_lines
        case Drawing(_, lines):
            return [line for text in lines for line in _wrapped(text, width)]
        case Table():
            return list(_table(part, verbose, width, room))


def _wrapped(text: str, width: int) -> list[str]:
    lines = wrap(tied(shown(text, 4000)), width, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def _table(part: Table, verbose: bool, width: int, room: int) -> Iterator[str]:
    """Yield the title, the header, the rows and the legend of a table."""
    columns = part.numbers.columns
    chosen = [columns.index(name) for name in (part.brief or columns)]
    heads = [columns[i] for i in chosen]
    rows = part.numbers.rows if verbose else part.numbers.rows[: part.most]
    if part.title:
        yield from _wrapped(part.title, width)
    kinds = {"site": "site", **dict.fromkeys(P_VALUES, "p"), **part.kinds}
    cells = [[_cell_text(row[i], kinds.get(columns[i], "")) for i in chosen] for row in rows]
    right = [any(_is_figure(row[i], kinds.get(columns[i], "")) for row in rows) for i in chosen]
    lines = [*_heads(heads, cells, room), *cells]
    widths = _widths(lines, right, room)
    for line in lines:
        yield from _line(line, widths, right)
    left = len(part.numbers.rows) - len(rows)
    if left > 0:
        yield f"and {plural(left, 'more row')} (-v shows them)"
    if len(widths) < len(chosen):
        hidden = ", ".join(heads[len(widths) :])
        yield from _wrapped(f"columns not shown for lack of space: {hidden}", width)
    meanings = [(name, text) for name, text in part.meanings.items() if name in heads]
    if meanings:
        yield ""
        yield from _pairs(meanings, width)


def _pairs(pairs: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield names and their values in two columns."""
    room = max(len(name) for name, _ in pairs) + len(GAP)
    for name, text in pairs:
        lines = _wrapped(text, width - room)
        for head, line in zip_longest([name], lines, fillvalue=""):
            yield head.ljust(room) + line


def _heads(heads: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
    """Return the header lines of a table; if space is short, one word per line."""
    whole = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    if sum(whole) + len(GAP) * (len(heads) - 1) <= width:
        return [heads]
    words = [name.split() for name in heads]
    n = max(map(len, words))
    return list(zip(*([""] * (n - len(own)) + own for own in words), strict=True))


def _is_figure(value: Cell, kind: str) -> bool:
    return kind == "number" or isinstance(value, int | float)


def _cell_text(value: Cell, kind: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return shown(value.removesuffix(":out") if kind == "site" else value, 400)
    return p_value(value) if kind == "p" else share(value) if kind == "share" else number(value)


def _widths(cells: Sequence[Sequence[str]], right: Sequence[bool], width: int) -> list[int]:
    """Return the widths of the columns that fit; text shrinks before columns are dropped."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(right))]
    last = len(widths) - 1
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        over = sum(widths) + len(GAP) * last - width
        if over > 0 and not right[i]:
            widths[i] = max(widths[i] - over, min(widths[i], NARROWEST))
    while len(widths) > 1 and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        widths.pop()
    return widths


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """Yield a row; a text in the last column continues on the next line if it does not fit."""
    *first, (cell, room, end) = zip(cells, widths, right, strict=False)
    head = "".join(f"{_fitted(*one)}{GAP}" for one in first)
    if end or len(cell) <= room:
        yield head + _fitted(cell, room, end)
        return
    for line in wrap(cell, room):
        yield head + line
        head = " " * len(head)


def _fitted(cell: str, room: int, right: bool) -> str:
    """Return a cell padded to its column; a name that is too long keeps its distinctive end."""
    cut = cell if len(cell) <= room else f"…{cell[len(cell) - room + 1 :]}"
    return cut.rjust(room) if right else cut.ljust(room)
