"""Print the table of docs/studies.md from what ``sonde study NAME -o FOLDER`` wrote.

python tools/study_table.py reports/studies [docs/studies.md]
python tools/study_table.py --judge docs/studies.md

python tools/study_table.py --hardly docs/studies.md

With a page, the rows of the studies in the folder are put there in place of theirs; others stay.
A row of more or fewer than ten seeds ends in their number. ``--judge`` needs no run: it gives each
claim of a page the verdict that its figure, interval and bar say, if their rounding allows one.
``--hardly`` prints the claims that hold and could hardly have failed.
"""

import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde_studies import Study, study_of
from sonde_studies.nulls import BLIND
from sonde_studies.study import smallest_that_matters, verdict_of

ROUNDED = 0.5e-3
USUAL_SEEDS, NULL = 10, "nothing to find: "
HEAD = "| study | claim | figure | bar | would have seen | verdict |\n|---|---|---|---|---|---|"


def lines_of(study: dict[str, Any]) -> list[str]:
    """Return a line for each claim, and a line for the null arm."""
    word, n = study["study"], len(study["seeds"])
    seeds = "" if n == USUAL_SEEDS else f", {n} seeds"
    claims = [_line(word, c, c["text"], _verdict(c, n) + seeds) for c in study["claims"]]
    null = study["null"]
    return [*claims, _line(word, null, f"{NULL}{null['text']}", null["verdict"] + seeds)]


def _verdict(claim: dict[str, Any], n: int) -> str:
    """Return the verdict of a claim's interval: files of older versions have other words."""
    if claim["verdict"] == "not tested":
        return "not tested"
    return verdict_of(claim["low"], claim["high"], claim["above"], n)


def _line(word: str, claim: dict[str, Any], text: str, verdict: str) -> str:
    figure = f"{claim['mean']:.3f} [{claim['low']:.3f}, {claim['high']:.3f}] {claim['figure']}"
    seen = f"{claim['detectable']:.3f}"
    return f"| `{word}` | {text} | {figure} | {claim['above']:g} | {seen} | {verdict} |"


@dataclass(frozen=True)
class Printed:
    """The numbers of a row; the interval and ``seen`` are rounded to three digits.

    Parameters
    ----------
    mean, low, high : float
    above : float
        The bar.
    seen : float
        The smallest effect that would have been seen.
    verdict : str
    n : int
        Number of seeds.
    """

    mean: float
    low: float
    high: float
    above: float
    seen: float
    verdict: str
    n: int

    @property
    def allowed(self) -> set[str]:
        """The verdicts of a claim whose interval is rounded to this one."""
        low, high = ((x - ROUNDED, x, x + ROUNDED) for x in (self.low, self.high))
        pairs = ((a, b) for a, b in itertools.product(low, high) if a <= b)
        return {verdict_of(a, b, self.above, self.n) for a, b in pairs}

    def effect(self, rounded: float) -> float:
        """Return the size of the effect, or the smallest that matters if that is larger.

        Parameters
        ----------
        rounded : float
            Added to each number.
        """
        width = self.high - self.low + 2 * rounded
        matters = smallest_that_matters(0.0, max(width, 0.0), self.n)
        return max(abs(self.mean - self.above) + rounded, matters)


def printed(line: str) -> Printed:
    """Return the numbers of a row of the table.

    Raises
    ------
    ValueError
        If it is no such row.
    """
    *_, figure, bar, seen, said = (cell.strip() for cell in line.strip("| ").split(" | "))
    found = re.match(r"(\S+) \[(\S+), (\S+)\]", figure)
    if found is None:
        raise ValueError(f"expected a figure with its interval, got {figure!r}")
    verdict, _, seeds = said.removesuffix(" seeds").rpartition(", ")
    if not seeds.isdigit():
        verdict, seeds = said, str(USUAL_SEEDS)
    mean, low, high = map(float, found.groups())
    return Printed(mean, low, high, float(bar), float(seen), verdict, int(seeds))


def judged(study: Study, lines: list[str]) -> list[str]:
    """Return the rows of a study with the verdicts of their numbers.

    Where the rounding of the numbers allows several, a row keeps the verdict that it had.

    Parameters
    ----------
    study : Study
    lines : list of str
        A row for each claim, and that of the null arm.
    """
    *rows, null = map(printed, lines)
    new = {
        claim.key: row.verdict if len(row.allowed) > 1 and row.verdict != "not tested"
        else next(iter(row.allowed))
        for claim, row in zip(study.claims, rows, strict=True)
    }  # fmt: skip
    for claim in study.claims:  # a premise may have one of its own
        if claim.premise and new[claim.premise] != "holds":
            new[claim.key] = "not tested"
    verdicts = [*new.values(), _judged_null(study, rows, null)]
    return [
        line.replace(f"| {row.verdict}{end}", f"| {verdict}{end}")
        for line, row, verdict in zip(lines, [*rows, null], verdicts, strict=True)
        for end in [line.rpartition(row.verdict)[2]]
    ]


def _judged_null(study: Study, rows: list[Printed], null: Printed) -> str:
    premises, weak = {claim.premise for claim in study.claims}, set[bool]()
    found = [r for c, r in zip(study.claims, rows, strict=True) if c.key not in premises]
    for rounded in (-ROUNDED, ROUNDED):
        weak.add(null.seen - rounded > max(row.effect(rounded) for row in found))
    was = null.verdict.removesuffix(", blind")
    said = was.removesuffix(", weak")
    verdict = said + ", weak" * weak.pop() if len(weak) == 1 else was
    return verdict + ", blind" * (study.name in BLIND)


def hardly_fails(line: str) -> bool:
    """Return whether a claim holds without any spread over seeds, or 20 widths above its bar."""
    row = printed(line)
    width = row.high - row.low
    return NULL not in line and row.verdict == "holds" and row.low - row.above >= 20 * width


def rows_of(page: str) -> dict[str, list[str]]:
    """Return the rows of each study in the table of a page."""
    rows: dict[str, list[str]] = {}
    for line in page.partition(HEAD + "\n")[2].partition("\n\n")[0].splitlines():
        rows.setdefault(line.split("`")[1], []).append(line)
    return rows


def changed(page: str, rows: dict[str, list[str]]) -> str:
    """Return a page with these rows in place of those that its table had."""
    before, head, rest = page.partition(HEAD + "\n")
    _, gap, after = rest.partition("\n\n")
    table = (line for word in sorted(rows, key="{}.json".format) for line in rows[word])
    return "".join([before, head, "\n".join(table), gap, after])


def main(arguments: list[str]) -> int:
    """Print the table, or change a page; 2 without a folder, 1 for a study at tiny size."""
    if arguments[:1] == ["--judge"] and len(arguments) == 2:
        page = Path(arguments[1])
        text = page.read_text("utf-8")
        rows = {word: judged(study_of(word), lines) for word, lines in rows_of(text).items()}
        page.write_text(changed(text, rows), "utf-8")
        return 0
    if arguments[:1] == ["--hardly"] and len(arguments) == 2:
        rows = rows_of(Path(arguments[1]).read_text("utf-8"))
        print("\n".join(line for lines in rows.values() for line in lines if hardly_fails(line)))
        return 0
    if len(arguments) not in (1, 2):
        sys.stderr.write(
            "usage: python tools/study_table.py FOLDER [PAGE] | --judge PAGE | --hardly PAGE\n"
        )
        return 2
    files = sorted(Path(arguments[0]).glob("*.json"))
    studies = [json.loads(f.read_text("utf-8")) for f in files if not f.match("*.seeds.json")]
    if any(study["tiny"] for study in studies):
        sys.stderr.write("error: expected studies at full size, got one that ran with --tiny\n")
        return 1
    if arguments[1:]:
        page = Path(arguments[1])
        text = page.read_text("utf-8")
        rows = rows_of(text) | {study["study"]: lines_of(study) for study in studies}
        page.write_text(changed(text, rows), "utf-8")
    else:
        print(HEAD)
        for study in studies:
            print("\n".join(lines_of(study)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
