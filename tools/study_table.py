"""Write what ``sonde study NAME -o FOLDER`` found into docs/studies.tsv, and draw its page.

python tools/study_table.py reports/studies [docs/studies.tsv]
python tools/study_table.py --judge docs/studies.tsv
python tools/study_table.py --hardly docs/studies.tsv

With a table, the rows of the studies in the folder are put there in place of theirs; others stay.
``--judge`` needs no run: it gives each claim of a table the verdict that its figure, interval and
bar say, if their rounding allows one. ``--hardly`` prints the claims that hold and could hardly
have failed.
"""

import itertools
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import Any

from sonde_studies import Study, study_of
from sonde_studies.nulls import BLIND
from sonde_studies.study import smallest_that_matters, verdict_of

TABLE = Path(__file__).resolve().parent.parent / "docs" / "studies.tsv"
ROUNDED, LEAST = 0.5e-3, 1e-9
SPARE = 1.5
NULL = "nothing to find: "
USAGE = "usage: python tools/study_table.py FOLDER [TABLE] | --judge TABLE | --hardly TABLE\n"


@dataclass(frozen=True)
class Row:
    """A row of the table: a claim, or the null arm of a study.

    Parameters
    ----------
    study, claim : str
        The claim of a null arm begins with ``nothing to find``.
    mean, low, high : str
        The figure and its interval, rounded to three digits.
    figure : str
        What the figure measures.
    bar, seen : str
        What the interval must lie above, and the smallest effect that would have been seen.
    verdict, seeds : str
    """

    study: str
    claim: str
    mean: str
    low: str
    high: str
    figure: str
    bar: str
    seen: str
    verdict: str
    seeds: str

    @property
    def is_null(self) -> bool:
        """Whether it is the arm in which there is nothing to find."""
        return self.claim.startswith(NULL)

    @property
    def width(self) -> float:
        """Width of the interval."""
        return float(self.high) - float(self.low)

    @property
    def allowed(self) -> set[str]:
        """The verdicts of a claim whose interval is rounded to this one."""
        pairs = ((a, b) for a, b in itertools.product(_near(self.low), _near(self.high)) if a <= b)
        return {verdict_of(a, b, float(self.bar), int(self.seeds)) for a, b in pairs}

    def effect(self, rounded: float) -> float:
        """Return the size of the effect, or the smallest that matters if that is larger.

        Parameters
        ----------
        rounded : float
            Added to each number.
        """
        width = max(self.width + 2 * rounded, 0.0)
        matters = smallest_that_matters(0.0, width, int(self.seeds))
        return max(abs(float(self.mean) - float(self.bar)) + rounded, matters)

    @property
    def can_hardly_fail(self) -> bool:
        """Whether a claim holds without any spread over seeds, or 20 widths above its bar."""
        above = float(self.low) - float(self.bar)
        return not self.is_null and self.verdict == "holds" and above >= 20 * self.width


def _near(text: str) -> tuple[float, float, float]:
    """Return what a number may have been before it was rounded; its sign is that of the text."""
    x = float(text)
    if abs(x) > ROUNDED:
        return x - ROUNDED, x, x + ROUNDED
    return (-ROUNDED, -ROUNDED / 2, -LEAST) if text.startswith("-") else (0.0, ROUNDED / 2, ROUNDED)


HEAD = "\t".join(f.name for f in fields(Row))


def rows_of(study: Mapping[str, Any]) -> list[Row]:
    """Return a row for each claim of a study's file, and a row for the null arm."""
    n = len(study["seeds"])
    claims = [_row(study, claim, claim["text"], _verdict(claim, n)) for claim in study["claims"]]
    null = study["null"]
    return [*claims, _row(study, null, f"{NULL}{null['text']}", null["verdict"])]


def untold_costs(study: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the cost that a study states; empty if nothing is.

    A study that states none may take 20 s a seed, and processors differ: half as much more is
    allowed. Files of older versions state nothing and are not judged.

    Parameters
    ----------
    study : mapping
        The study's file.
    """
    if "seconds_stated" not in study:
        return []
    spent, stated = study["seconds"] / len(study["seeds"]), study["seconds_stated"]
    if spent <= SPARE * stated:
        return []
    return [
        f"study {study['study']}: expected at most {stated:g} s of processor time a seed, as it "
        f"states, got {spent:.0f}. State what it takes (Study.seconds), or make it cheaper."
    ]


def _verdict(claim: Mapping[str, Any], n: int) -> str:
    """Return the verdict of a claim's interval: files of older versions have other words."""
    if claim["verdict"] == "not tested":
        return "not tested"
    return verdict_of(claim["low"], claim["high"], claim["above"], n)


def _row(study: Mapping[str, Any], claim: Mapping[str, Any], text: str, verdict: str) -> Row:
    mean, low, high, seen = (f"{claim[k]:.3f}" for k in ("mean", "low", "high", "detectable"))
    bar, seeds = f"{claim['above']:g}", str(len(study["seeds"]))
    return Row(study["study"], text, mean, low, high, claim["figure"], bar, seen, verdict, seeds)


def read(table: Path = TABLE) -> dict[str, list[Row]]:
    """Return the rows of each study in a table.

    Raises
    ------
    ValueError
        If the table has other columns.
    """
    head, *lines = table.read_text("utf-8").splitlines()
    if head != HEAD:
        raise ValueError(f"expected the columns {HEAD!r}, got {head!r}")
    rows: dict[str, list[Row]] = {}
    for line in lines:
        row = Row(*line.split("\t"))
        rows.setdefault(row.study, []).append(row)
    return rows


def as_text(rows: Iterable[Row]) -> str:
    """Return rows as lines of tab-separated cells, below the names of the columns."""
    return "\n".join([HEAD, *("\t".join(astuple(row)) for row in rows)]) + "\n"


def write(table: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Write the rows of all studies by the names of the studies."""
    inside = (row for word in sorted(rows, key="{}.json".format) for row in rows[word])
    table.write_text(as_text(inside), "utf-8")


def judged(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a study with the verdicts of their numbers.

    Where the rounding of the numbers allows several, a row keeps the verdict that it had.

    Parameters
    ----------
    study : Study
    rows : sequence of Row
        A row for each claim, and that of the null arm.
    """
    *claims, null = rows
    new = {
        claim.key: row.verdict if len(row.allowed) > 1 and row.verdict != "not tested"
        else next(iter(row.allowed))
        for claim, row in zip(study.claims, claims, strict=True)
    }  # fmt: skip
    for claim in study.claims:  # a premise may have one of its own
        if claim.premise and new[claim.premise] != "holds":
            new[claim.key] = "not tested"
    verdicts = [*new.values(), _judged_null(study, claims, null)]
    return [replace(row, verdict=v) for row, v in zip(rows, verdicts, strict=True)]


def _judged_null(study: Study, claims: Sequence[Row], null: Row) -> str:
    premises, weak = {claim.premise for claim in study.claims}, set[bool]()
    counted = [r for c, r in zip(study.claims, claims, strict=True) if c.key not in premises]
    for rounded in (-ROUNDED, ROUNDED):
        weak.add(float(null.seen) - rounded > max(row.effect(rounded) for row in counted))
    was = null.verdict.removesuffix(", blind")
    said = was.removesuffix(", weak")
    verdict = said + ", weak" * weak.pop() if len(weak) == 1 else was
    return verdict + ", blind" * (study.name in BLIND)


def page(
    rows: Mapping[str, Sequence[Row]],
    families: Mapping[str, Sequence[str]],
    systems: Mapping[str, Sequence[str]],
    noted: Collection[str] = (),
) -> str:
    """Return the table as HTML, with fields that filter it by word, verdict and family.

    Parameters
    ----------
    rows : mapping of str to sequence of Row
        The rows of each study.
    families : mapping of str to sequence of str
        The rooms of the library that each study tries.
    systems : mapping of str to sequence of str
        The names of the systems that each study tries, by which its rows are found too.
    noted : collection of str, optional
        Studies on which the page has a note, to which their first row links.
    """
    verdicts = sorted({row.verdict.partition(",")[0] for inside in rows.values() for row in inside})
    rooms = sorted({room for names in families.values() for room in names})
    choices = _select("verdict", verdicts) + _select("family", rooms)
    head = "".join(f"<th>{name}</th>" for name in (
        "study", "claim", "figure", "bar", "would have seen", "verdict", "seeds"))  # fmt: skip
    body = "\n".join(
        f'<tr data-verdict="{row.verdict.partition(",")[0]}" '
        f'data-family="{" ".join(families.get(word, ()))}" '
        f'data-systems="{escape(", ".join(systems.get(word, ())))}">'
        f"{_cell(word, first=not i, noted=word in noted)}{_cells(row)}</tr>"
        for word in sorted(rows)
        for i, row in enumerate(rows[word])
    )
    return (
        '<form class="study-filter" role="search">'
        '<input type="search" name="words" placeholder="Words of the study or claim" '
        f'aria-label="Words of the study or claim">{choices}'
        '<output name="count" aria-live="polite"></output></form>\n'
        f'<table class="studies"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>\n"
        '<script src="_static/studies.js"></script>\n'
    )


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in values)
    options = f'<option value="">any {name}</option>{options}'
    return f'<select name="{name}" aria-label="{name}">{options}</select>'


def _cell(study: str, first: bool, noted: bool) -> str:
    """Return the cell with a study's name: its first is what pages link to."""
    code = f'<code class="docutils literal notranslate"><span class="pre">{study}</span></code>'
    if first and noted:
        code = f'<a class="reference internal" href="#note-{study}">{code}</a>'
    return f'<td id="study-{study}">{code}</td>' if first else f"<td>{code}</td>"


def _cells(row: Row) -> str:
    figure = f"{row.mean} [{row.low}, {row.high}] {escape(row.figure)}"
    texts = (escape(row.claim), figure, row.bar, row.seen, row.verdict, row.seeds)
    return "".join(f"<td>{text}</td>" for text in texts)


def main(arguments: list[str]) -> int:
    """Print rows, or change a table; 2 without a folder, 1 for a study at tiny size."""
    if arguments[:1] == ["--judge"] and len(arguments) == 2:
        table = Path(arguments[1])
        write(table, {word: judged(study_of(word), rows) for word, rows in read(table).items()})
        return 0
    if arguments[:1] == ["--hardly"] and len(arguments) == 2:
        inside = [row for rows in read(Path(arguments[1])).values() for row in rows]
        sys.stdout.write(as_text(row for row in inside if row.can_hardly_fail))
        return 0
    if len(arguments) not in (1, 2):
        sys.stderr.write(USAGE)
        return 2
    files = sorted(Path(arguments[0]).glob("*.json"))
    studies = [json.loads(f.read_text("utf-8")) for f in files if not f.match("*.seeds.json")]
    if any(study["tiny"] for study in studies):
        sys.stderr.write("error: expected studies at full size, got one that ran with --tiny\n")
        return 1
    dear = [message for study in studies for message in untold_costs(study)]
    if dear:
        sys.stderr.write("".join(f"error: {message}\n" for message in dear))
        return 1
    new = {study["study"]: rows_of(study) for study in studies}
    if arguments[1:]:
        write(Path(arguments[1]), read(Path(arguments[1])) | new)
    else:
        sys.stdout.write(as_text(row for rows in new.values() for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
