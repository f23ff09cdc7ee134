"""Names of sites in sentences, levels from limits, and wording that rules share."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.core.wording import told_apart_names
from sonde.findings.evidence.record import DataEvidence, Evidence, SiteEvidence
from sonde.findings.rule import Check, Level, Rule
from sonde.findings.words.step import Step
from sonde.findings.words.text import LONGEST, listed, plural, shortened

_NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$")


def places(names: Sequence[str], at_most: int = 3) -> str:
    """Return site names as a list in which consecutive numbers are joined.

    Examples
    --------
    >>> places([f"blocks.{i}" for i in range(4, 12)]), places(["conv1", "body.0", "body.2"])
    ('blocks.4-11', 'conv1, body.0 and body.2')
    """
    runs: list[tuple[str, int, int, str]] = []
    texts: list[str | None] = []
    for name in names:
        match = _NUMBERED.match(name)
        if match is None:
            runs.append((name, -1, -1, ""))
            texts.append(name)
            continue
        start, number, rest = match[1], int(match[2]), match[3]
        if runs and runs[-1][0] == start and runs[-1][3] == rest and runs[-1][2] == number - 1:
            runs[-1] = (start, runs[-1][1], number, rest)
        else:
            runs.append((start, number, number, rest))
            texts.append(None)
    joined = [
        text if text is not None else _run(*run) for text, run in zip(texts, runs, strict=True)
    ]
    return listed([shortened(text) for text in joined], at_most)


def _run(start: str, low: int, high: int, rest: str) -> str:
    return f"{start}{low}{rest}" if low == high else f"{start}{low}-{high}{rest}"


def sentence(*parts: str) -> str:
    """Return the first part, and further parts while the sentence stays short enough."""
    text = parts[0]
    for part in parts[1:]:
        if part and len(text) + 1 + len(part) <= LONGEST:
            text = f"{text} {part}"
    if len(text) <= LONGEST:
        return text
    cut = text[: LONGEST - 1]
    return f"{cut.rpartition(' ')[0] or cut}…"


def two_names(evidence: Evidence) -> tuple[str, str]:
    """Return the names of the two data sets for sentences."""
    own, theirs = told_apart_names(evidence.data.name, evidence.versus.other_data.name)
    return shortened(own, 24), shortened(theirs, 24)


def rows_of(site: SiteEvidence, evidence: Evidence) -> str:
    """Return the number of rows as text, and of examples if rows are tokens."""
    n = site.all.scalars.n
    if site.all.key == site.schema.key:
        return plural(n, "row")
    what = "tokens" if site.all.key.endswith("tokens") else "positions"
    return f"{n:,} {what} of {plural(evidence.data.n, 'example')}"


def is_averaged(site: SiteEvidence) -> bool:
    """Return whether pooled rows are means over positions, not states that the model had."""
    return site.schema.reducer.name == "mean" and len(site.schema.axes.split()) > 2


def reached(
    value: float,
    note: float | None = None,
    warning: float | None = None,
    error: float | None = None,
    below: bool = False,
) -> tuple[Level, float] | None:
    """Return the highest level whose limit a value reaches, and that limit.

    Examples
    --------
    >>> reached(0.02, note=0.001, warning=0.01, error=0.25)
    ('warning', 0.01)
    >>> reached(0.05, note=0.1, warning=0.03, below=True)
    ('note', 0.1)
    """
    limits: tuple[tuple[Level, float | None], ...] = (
        ("error", error),
        ("warning", warning),
        ("note", note),
    )
    for level, limit in limits:
        if limit is not None and (value < limit if below else value >= limit):
            return level, limit
    return None


def log_effect(value: float, threshold: float, full: float) -> float:
    """Return the position of a ratio between threshold (0) and ``full`` (1), on a log scale."""
    if value <= 0 or threshold <= 0:
        return 1.0
    share = math.log(value / threshold) / math.log(full / threshold)
    return min(1.0, max(0.0, share))


def too_few(rule: Rule, present: int, needed: int, what: str = "groups") -> Check:
    """Return the reason "too few rows", with both numbers in ``tables``."""
    return rule.withheld(
        f"needs {needed:,} {what}, {present:,} present", present=present, needed=needed, what=what
    )


def counted_as(evidence: Evidence) -> str:
    """Return the name of an independent row: "groups" if groups were given, else "rows"."""
    return "groups" if evidence.data.grouped else "rows"


def read_command(site: str) -> Step:
    """Return the step that reads a site."""
    return Step("read", {"sites": site})


def class_command(name: str, answer: str = "") -> Step:
    """Return the step that explains the answers of a class.

    If a name has a comma, no pair can be written, and the step shows the class alone.
    """
    is_pair = answer and "," not in name + answer
    return Step("explain", {"pair": f"{name},{answer}"} if is_pair else {"class": name})


def score_command(site: str) -> Step:
    """Return the step that scores OTHER with a detector fitted on DATA at a site."""
    return Step("score", {"sites": site})


def scan_command(**options: Any) -> Step:
    """Return the step that repeats the scan with some options changed."""
    return Step("scan", options)


def rows_command(code: str, versus: bool = False) -> Step:
    """Return the step that writes the inputs that a finding names, most suspicious first."""
    both = {"versus": True} if versus else {}
    return Step("scan", both | {"only": code, "rows": f"{code.lower()}.csv"})


def grouped_command(data: DataEvidence) -> Step | None:
    """Return the step that repeats the scan with groups from a table's column.

    Images of a folder need a table that lists them. None for data sets that the package brings.
    """
    if data.name.startswith("sonde:"):
        return None
    if data.name and Path(data.name).is_dir():
        return Step("scan", {"image_column": "IMAGE", "group_column": "COLUMN"}, data="TABLE.jsonl")
    return scan_command(group_column="COLUMN")


def least_groups_for_silence(dim: int) -> int:
    """Return how many groups are needed before a unit active on 5 % of rows cannot look dead."""
    return math.ceil(20 * math.log(dim / 0.01))
