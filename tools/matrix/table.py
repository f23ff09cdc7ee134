"""The cells as Markdown: a line for each architecture, then why a job was refused or is wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

RIGHT, REFUSED, WRONG, SENSELESS = "right", "refused", "wrong", "-"
MOST = 140


@dataclass(frozen=True)
class Cell:
    """The verdict on a job and an architecture."""

    architecture: str
    job: str
    verdict: str
    said: str = ""
    seconds: float = 0.0


def table(cells: Sequence[Cell]) -> str:
    """Return the cells as Markdown."""
    jobs = list(dict.fromkeys(c.job for c in cells))
    found = {(c.architecture, c.job): c.verdict for c in cells}
    lines = [["architecture", *jobs], ["---"] * (len(jobs) + 1)]
    for name in dict.fromkeys(c.architecture for c in cells):
        lines.append([name, *(found.get((name, job), "") for job in jobs)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def reasons(cells: Sequence[Cell]) -> str:
    """Return each cell that is not right, with what was said."""
    lines = ["| architecture | job | verdict | said |", "| --- | --- | --- | --- |"]
    for c in cells:
        if c.verdict in (REFUSED, WRONG):
            said = c.said[:MOST].replace("|", "/")
            lines.append(f"| {c.architecture} | {c.job} | {c.verdict} | {said} |")
    return "\n".join(lines)


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
