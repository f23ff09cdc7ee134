"""SND009: too few rows for some checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.rule import Breaks, Check, Figure, Finding, Level, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import counted_as, scan_command, sentence
from sonde.findings.words.step import MORE_DATA, Step
from sonde.findings.words.text import listed, plural

LARGER = {
    "sonde:digits": "sonde:digits/train",
    "sonde:digits/test": "sonde:digits/train",
    "sonde:stdlib": "sonde:stdlib/test-all",
    "sonde:stdlib/test": "sonde:stdlib/test-all",
    "sonde:stdlib/train": "sonde:stdlib/train-all",
}


@final
@dataclass(frozen=True)
class SND009(Rule):
    """Checks that were withheld because there are too few rows, and what they would need.

    The other checks arrive in ``evidence.checks``, so this one runs last.

    Parameters
    ----------
    warning : int, default=32
        Fewer groups make the finding a warning.
    """

    warning: int = 32
    title: ClassVar[str] = "Too few rows for some questions"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("withheld",)
    breaks: ClassVar[Breaks] = "nothing"
    reads_checks: ClassVar[bool] = True
    why: ClassVar[str] = "A check that could not run is unknown, not passed."
    fix: ClassVar[str] = "Read more rows."
    how: ClassVar[str] = (
        "Lists the checks that had too few rows, with the number of rows present and needed. A "
        "warning below 32 groups, or if --fail-on names one of these checks. Also raised if "
        "--limit read only some of the classes of a file sorted by label."
    )
    plant: ClassVar[str] = "20 rows."
    twin: ClassVar[str] = "2,000 rows."

    def check(self, evidence: Evidence) -> Check:
        """Collect the withheld checks; if no row is finite, more rows would not help."""
        if not evidence.sites:
            return self.withheld("no site has a row without NaN or infinity")
        starved = [c for c in evidence.checks if _wants_rows(c)]
        few = evidence.n_groups < self.warning
        partial = self._sorted_cut(evidence)
        present, needed, what = self._shortage(evidence, starved)
        figure = Figure(
            "present", float(present), unit=what, threshold=float(needed), direction="below",
            n_rows=evidence.data.n, n_groups=evidence.n_groups,
        )  # fmt: skip
        if not starved and not few and not partial:
            return self.clear(figure)
        return self.raised(
            Finding(
                code=self.code,
                level=self._level(evidence, starved, few, bool(partial)),
                sentence=sentence(*self._text(evidence, starved), partial, _rest(evidence.data)),
                figure=figure,
                effect=max(0.1, 1.0 - present / needed),
                next=_more(evidence.data),
            ),
            withheld=[{"code": c.code, **_numbers(c)} for c in starved],
        )

    def _shortage(self, evidence: Evidence, starved: Sequence[Check]) -> tuple[int, int, str]:
        """Return how many rows or groups the most demanding check has and needs."""
        counted = [c.tables for c in starved if "needed" in c.tables]
        if not counted:
            return evidence.n_groups, self.warning, counted_as(evidence)
        worst = max(counted, key=lambda tables: int(tables["needed"]))
        return worst["present"], worst["needed"], worst["what"]

    def _level(
        self, evidence: Evidence, starved: Sequence[Check], few: bool, partial: bool
    ) -> Level:
        gated = {code.upper() for code in evidence.fail_on}
        is_gate = any(c.code in gated for c in starved)
        return "warning" if few or is_gate or partial else "note"

    def _text(self, evidence: Evidence, starved: Sequence[Check]) -> list[str]:
        have = plural(evidence.n_groups, counted_as(evidence).removesuffix("s"))
        if not starved:
            return [f"There are only {have}; below {self.warning}, confidence intervals are wide."]
        worst = max(starved, key=lambda c: int(c.tables.get("needed", 0)))
        codes = listed([c.code for c in starved], 4)
        return [
            f"{plural(len(starved), 'check')} had too few rows ({codes}).",
            f"{worst.code} {worst.reason}.",
        ]

    @staticmethod
    def _sorted_cut(evidence: Evidence) -> str:
        """Return a warning if ``--limit`` read only part of a file sorted by label; else empty."""
        data = evidence.data
        if not data.limited or not data.has_labels or data.sample_of is not None:
            return ""
        label = data.label[data.label >= 0]
        runs = 1 + int((label[1:] != label[:-1]).sum()) if len(label) else 0
        classes = len(torch.unique(label))
        named = len(data.label_names or ())
        if runs != classes or (classes > 1 and len(label) < 2 * classes):
            return ""
        of = f" of {named}" if named > classes else ""
        return (
            "The file is sorted by label, and --limit read only "
            f"{plural(classes, 'class', 'classes')}{of}."
        )


def _more(data: DataEvidence) -> Step:
    """Return the step that reads more rows, or other data if all rows were read."""
    if data.limited:
        return scan_command(limit=None)
    return Step("scan", data=LARGER.get(data.name, MORE_DATA))


def _rest(data: DataEvidence) -> str:
    return "" if data.limited or data.name in LARGER else "All of the data was read."


def _wants_rows(check: Check) -> bool:
    return check.state == "withheld" and (
        "needed" in check.tables or check.reason.startswith("needs ")
    )


def _numbers(check: Check) -> dict[str, int | str | None]:
    return {name: check.tables.get(name) for name in ("present", "needed", "what")}
