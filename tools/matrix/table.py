"""The cells as a page in Markdown: figures, a line for each architecture, reasons of refusals."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RIGHT, REFUSED, WRONG, SENSELESS = "right", "refused", "wrong", "-"
MARKS = {RIGHT: "✓", SENSELESS: "–", "": ""}
PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
STORED = PAGE.with_suffix(".json")
NAMED = ("sonde", "torch", "transformers")
HEAD = """# What works with what

`make matrix` builds each architecture small and with random weights, writes it with
`save_pretrained`, opens it by transformers alone and by sonde, does each job by sonde and again by
plain torch code, and compares. This page and `docs/matrix.json` are what the command wrote; the
slow tests run all cells again and compare the verdicts.

Texts of three lengths are read, so that most rows are padded, against each text alone. The other
jobs compare rows of one length; `edit` and `insert` also edit the last tokens and insert an
attention layer, and compare padded rows with each row alone.

"""
LEGEND = """
✓: equal to plain torch. A number: refused with the reason below. –: the job makes no sense there.
Empty: not tried; twelve architectures are split over ranks.

| job | what is compared |
|---|---|
"""


@dataclass(frozen=True)
class Cell:
    """The verdict on a job and an architecture."""

    architecture: str
    job: str
    verdict: str
    said: str = ""
    seconds: float = 0.0


def table(cells: Sequence[Cell]) -> str:
    """Return the cells as Markdown; a refusal is the number of its reason."""
    jobs = list(dict.fromkeys(c.job for c in cells))
    numbers = {said: i for i, said in enumerate(_reasons(cells), 1)}
    found = {(c.architecture, c.job): _mark(c, numbers) for c in cells}
    lines = [["architecture", *jobs], ["---", *[":-:"] * len(jobs)]]
    for name in dict.fromkeys(c.architecture for c in cells):
        lines.append([name, *(found.get((name, job), "") for job in jobs)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mark(cell: Cell, numbers: Mapping[str, int]) -> str:
    if cell.verdict == WRONG:
        return "**wrong**"
    return str(numbers[cell.said]) if cell.verdict == REFUSED else MARKS[cell.verdict]


def _reasons(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(c.said for c in cells if c.verdict == REFUSED))


def reasons(cells: Sequence[Cell]) -> str:
    """Return the reasons of refusals, numbered, and what was said of each wrong cell."""
    lines = [f"{i}. {_plain(said)}" for i, said in enumerate(_reasons(cells), 1)]
    wrong = [c for c in cells if c.verdict == WRONG]
    return "\n".join([*lines, *(f"- {c.architecture}, {c.job}: {_plain(c.said)}" for c in wrong)])


def _plain(said: str) -> str:
    """Return a message without what Markdown would read as its own."""
    return said.replace("*", r"\*").replace("_", r"\_").replace("<", r"\<")


def summary(cells: Sequence[Cell]) -> str:
    """Return one line that counts verdicts, and architectures without a cell that is not right."""
    counts = Counter(c.verdict for c in cells)
    asked = {c.architecture for c in cells}
    bad = {c.architecture for c in cells if c.verdict in (REFUSED, WRONG)}
    n = sum(counts[v] for v in (RIGHT, REFUSED, WRONG))
    return (
        f"{n} cells: {counts[RIGHT]} right, {counts[REFUSED]} refused, {counts[WRONG]} wrong; "
        f"{len(asked - bad)} of {len(asked)} architectures have every job that makes sense for them"
    )


def page(cells: Sequence[Cell], versions: Mapping[str, str], jobs: Mapping[str, str]) -> str:
    """Return the page.

    Parameters
    ----------
    cells : sequence of Cell
    versions : mapping of str to str
    jobs : mapping of str to str
        What each job compares.
    """
    told = ", ".join(f"{name} {versions[name]}" for name in NAMED)
    lines = [f"| {name} | {about} |" for name, about in jobs.items()]
    parts = [
        f"{summary(cells)} ({told}).\n",
        LEGEND + "\n".join(lines),
        "",
        table(cells),
        "\n## Why jobs were refused\n",
        reasons(cells),
    ]
    return HEAD + "\n".join(parts) + "\n"


def stored(cells: Sequence[Cell], versions: Mapping[str, str]) -> str:
    """Return the cells as JSON, a line for each architecture: job, verdict and what was said."""
    lines = []
    for name in dict.fromkeys(c.architecture for c in cells):
        own = [[c.job, c.verdict, c.said] for c in cells if c.architecture == name]
        lines.append(f"{json.dumps(name)}: {json.dumps(own)}")
    head = json.dumps({name: versions[name] for name in NAMED})
    return f'{{"versions": {head},\n"cells": {{\n' + ",\n".join(lines) + "\n}}\n"


def read_stored(text: str) -> tuple[list[Cell], dict[str, Any]]:
    """Return the cells and versions of a stored file."""
    found = json.loads(text)
    cells = [Cell(name, *one) for name, own in found["cells"].items() for one in own]
    return cells, found["versions"]
