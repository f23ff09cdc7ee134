"""SND044: rows resemble their neighbours in the file."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from scipy.stats import t

from sonde.findings._places import scan_command, too_few
from sonde.findings._text import percent, plural
from sonde.findings.evidence import Evidence, SiteEvidence
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme
from sonde.stats.neighbour_sums import BLOCKS


@dataclass(frozen=True)
class _Steps:
    site: SiteEvidence
    value: float
    se: float
    pairs: int

    @property
    def z(self) -> float:
        if self.se > 0:
            return (1 - self.value) / self.se
        return math.inf if self.value < 1 else 0.0


@final
@dataclass(frozen=True)
class SND044(Rule):
    """Squared steps between rows that follow one another, over those between any two."""

    below: float = 0.9
    errors: float = 5.0
    least: float = 200.0
    level: float = 0.001

    code: ClassVar[str] = "SND044"
    title: ClassVar[str] = "Rows resemble their neighbours in the file"
    theme: ClassVar[Theme] = "data"
    why: ClassVar[str] = (
        "The rows are not independent: standard errors and p-values that count each row alone are "
        "too small."
    )
    how: ClassVar[str] = (
        "Mean of |x_i - x_(i+1)|^2 over consecutive rows of different groups, divided by twice the "
        "total variance: 1 for groups in random order. Standard error by leaving out one of 16 "
        "interleaved blocks. A warning where no groups are given and p-values against OTHER are "
        "printed."
    )
    false_positives: ClassVar[str] = "Files sorted by label or by source, though rows differ."
    plant: ClassVar[str] = "Rows sorted by label."
    twin: ClassVar[str] = "The same rows shuffled."

    def check(self, evidence: Evidence) -> Check:
        """Compare steps with spread at every site."""
        steps = [s for site in evidence.sites if (s := _steps(site)) is not None]
        if not steps:
            return self.withheld("groups do not lie together, so neighbours were not compared")
        worst = min(steps, key=lambda s: s.value)
        if worst.pairs < self.least:
            return too_few(self, worst.pairs, int(self.least), "neighbouring rows")
        p = min(1.0, float(t.sf(worst.z, BLOCKS - 1)) * len(steps))
        figure = Figure(
            "neighbour_step",
            worst.value,
            worst.value - 2.13 * worst.se,
            worst.value + 2.13 * worst.se,
            "ratio",
            null=1.0,
            threshold=self.below,
            direction="below",
            p=p,
            n_rows=worst.site.n_rows,
            n_groups=evidence.n_groups,
        )
        if worst.value >= self.below or worst.z <= self.errors or p >= self.level:
            return self.clear(figure)
        severe = evidence.versus is not None and not evidence.data.grouped
        sites = tuple(s.site.schema.key for s in steps if s.value < self.below)
        return self.raised(
            Finding(
                self.code,
                "warning" if severe else "note",
                self._sentence(worst, " of different groups" if evidence.data.grouped else ""),
                figure,
                sites=sites,
                effect=max(0.0, min(1.0, 1 - worst.value)),
                next=scan_command(group_column="COLUMN"),
            )
        )

    def _sentence(self, worst: _Steps, whose: str) -> str:
        return (
            f"Rows{whose} that follow one another in the file are alike at {worst.site.name}: "
            f"their squared distance is {percent(worst.value)} of that of any two rows "
            f"({percent(max(0.0, worst.value - 2.13 * worst.se))} to "
            f"{percent(worst.value + 2.13 * worst.se)}; 100 % in random order). "
            f"{plural(worst.pairs, 'pair')}."
        )


def _steps(site: SiteEvidence) -> _Steps | None:
    sums, moments = site.neighbours, site.moments
    if sums is None or moments.n < 2:
        return None
    spread = 2 * float(moments.variance.sum()) * moments.n / (moments.n - 1)
    pairs = int(sums.pairs.sum())
    if spread <= 0 or pairs == 0:
        return None
    return _Steps(site, float(sums.mean) / spread, sums.se / spread, pairs)
