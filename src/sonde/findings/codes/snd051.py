"""SND051: the states of the two data sets differ."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.versus.comparison import LEAST_GROUPS, LEVEL, DataComparison, compare
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import counted_as, score_command, too_few, two_names
from sonde.findings.words.text import number


@final
@dataclass(frozen=True)
class SND051(Rule):
    """AUROC of one linear direction between DATA and OTHER, per site."""

    note: float = 0.6
    warning: float = 0.75
    length: float = 0.05

    title: ClassVar[str] = "The states of the two data sets differ"
    theme: ClassVar[Theme] = "versus"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("worse in production", "drift")
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "Results measured or tuned on one data set need not hold on the other; the first site "
        "that differs shows where the difference begins."
    )
    fix: ClassVar[str] = (
        "Find the columns or inputs that changed, and prepare OTHER in the same way as DATA."
    )
    how: ClassVar[str] = (
        "Per site: the direction S^-1 (mean of OTHER - mean of DATA), with S the OAS-shrunk "
        "covariance within the sets, is fitted on half of the groups; its AUROC is computed on "
        "one row of each held-out group, p from the rank-sum test, times the number of sites. "
        "Raised if p < 0.001 and the lower bound (Newcombe, 99.9 % over all sites) is above "
        "0.6; a warning above 0.75. Never an error: OTHER is often meant to differ."
    )
    false_positives: ClassVar[str] = "Rows of one source that come in unnamed groups."
    plant: ClassVar[str] = "Images shifted by one pixel."
    twin: ClassVar[str] = "Another half of the same data."

    def check(self, evidence: Evidence) -> Check:
        """Compare DATA with OTHER at every site."""
        if evidence.versus is None:
            return self.not_applicable("there is no second data set (--versus OTHER)")
        comparison = compare(evidence)
        if comparison is None:
            n = min(evidence.n_groups, evidence.versus.other.n_groups)
            return too_few(self, n, LEAST_GROUPS, f"{counted_as(evidence)} on each side")
        worst = max(comparison.sites, key=lambda s: (s.low, s.auroc))
        severe = worst.low > self.warning and worst.p < LEVEL
        figure = Figure(
            "auroc",
            worst.auroc,
            worst.low,
            worst.high,
            null=0.5,
            threshold=self.warning if severe else self.note,
            p=worst.p,
            n_rows=comparison.n_data + comparison.n_other,
            n_groups=comparison.n_data + comparison.n_other,
            confidence=1 - 2 * LEVEL / len(comparison.sites),
        )
        first = comparison.first(self.note)
        if first is None:
            return self.clear(figure, "differences below the limit are possible")
        sites = tuple(s.key for s in comparison.sites if s.low > self.note and s.p < LEVEL)
        return self.raised_with(
            "warning" if severe else "note",
            self._sentence(evidence, comparison),
            figure,
            sites=sites,
            effect=max(0.0, min(1.0, 2 * worst.auroc - 1)),
            next=score_command(worst.key),
        )

    def _sentence(self, evidence: Evidence, found: DataComparison) -> str:
        worst = max(found.sites, key=lambda s: (s.low, s.auroc))
        first = found.first(self.note)
        assert first is not None
        tail = ""
        if found.length_auroc is not None:
            tail = f" The length of the inputs alone has AUROC {number(found.length_auroc)}"
            near = found.length_auroc > worst.auroc - self.length
            tail += ", so length explains the difference." if near else "."
        where = f"at {worst.name}" + ("" if first is worst else f", first at {first.name}")
        own, theirs = two_names(evidence)
        return (
            f"{theirs} is separated from {own} {where} with AUROC {number(worst.auroc)} "
            f"({number(worst.low)} to {number(worst.high)}; 0.5 is no difference).{tail} "
            f"{found.n_data:,} and {found.n_other:,} {counted_as(evidence)}."
        )
