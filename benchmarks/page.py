"""The page of figures in the documentation: what was last measured of each benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, as_json, number

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
FIGURES = PAGE.with_suffix(".json")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
HEAD = "| benchmark | what | measured | budget | spread | | note |\n|---|---|---|---|---|---|---|"
NAMED = ("sonde", "torch", "transformers")


def write_page(
    rows: Sequence[Row], about: dict[str, str], page: Path = PAGE, figures: Path = FIGURES
) -> None:
    """Put the rows in place of those of the same benchmarks, in the file of figures and the page.

    Raises
    ------
    ValueError
        If the page has no place for figures.
    """
    kept = json.loads(figures.read_text()) if figures.exists() else {}
    for name in dict.fromkeys(row.name for row in rows):
        mine = as_json([row for row in rows if row.name == name], False, about)
        kept[name] = {"versions": mine["versions"], "rows": mine["rows"]}
    text = page.read_text()
    page.write_text(with_figures(text, kept))
    figures.write_text(json.dumps(kept, indent=1) + "\n")


def with_figures(text: str, kept: dict[str, Any]) -> str:
    """Return the text of the page with these figures between its two marks."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page of figures lacks {BEGIN} or {END}")
    lines = [_line(name, row) for name, entry in kept.items() for row in entry["rows"]]
    return "\n".join([head + BEGIN, "", _where(kept), "", HEAD, *lines, "", END]) + tail


def _where(kept: dict[str, Any]) -> str:
    """Return which versions and machines the figures belong to."""
    places: dict[str, list[str]] = {}
    for name, entry in kept.items():
        found = entry["versions"]
        words = ", ".join(f"{p} {found[p]}" for p in NAMED)
        place = f"{words}, Python {found['python']}, {found['processor']}"
        places.setdefault(place, []).append(f"`{name}`")
    if len(places) == 1:
        return f"Measured with {next(iter(places))}, one thread."
    return "\n".join(f"- {', '.join(names)}: {place}" for place, names in places.items())


def _line(name: str, row: dict[str, Any]) -> str:
    value = "-" if row["value"] is None else number(row["value"], row["unit"])
    budget = "" if row["budget"] is None else number(row["budget"], row["unit"])
    spread = number(row["spread"], row["unit"]) if row["spread"] else ""
    cells = [f"`{name}`", row["what"], value, budget, spread, row["verdict"], row["note"]]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
