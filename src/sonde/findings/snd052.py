"""SND052: rows of OTHER unlike anything in DATA."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._alarm import Alarm
from sonde.findings._places import counted_as, score_command, too_few
from sonde.findings._shared import examples_at
from sonde.findings._text import percent, plural
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme
from sonde.findings.versus import alarms
from sonde.stats.intervals import clopper_pearson


@final
@dataclass(frozen=True)
class SND052(Rule):
    """Share of OTHER that raises an alarm at a rate promised on DATA."""

    times: float = 2.0
    level: float = 0.001

    code: ClassVar[str] = "SND052"
    title: ClassVar[str] = "Rows unlike anything fitted"
    theme: ClassVar[Theme] = "versus"
    why: ClassVar[str] = (
        "On inputs that look like nothing it was fitted on, a model's answers are a guess."
    )
    how: ClassVar[str] = (
        "Detectors fitted on half of DATA's groups at every site; the logarithms of their p-values "
        "on the other half are added up and the sum is calibrated, one row of each group. The "
        "number of alarms in OTHER is compared with a beta-binomial, because the threshold itself "
        "was estimated. Raised where its chance is below 0.001 and the share above twice the rate."
    )
    false_positives: ClassVar[str] = "OTHER is meant to differ; rows that come in unnamed groups."
    plant: ClassVar[str] = "One row in ten of OTHER is noise."
    twin: ClassVar[str] = "Another half of the same data."

    def check(self, evidence: Evidence) -> Check:
        """Count alarms on OTHER."""
        if evidence.versus is None:
            return self.not_applicable("there is no second data set (--versus OTHER)")
        found = alarms(evidence)
        if not isinstance(found, Alarm):
            return self.withheld(found)
        if not found.possible:
            needed = found.calibration.needed(found.alpha)
            what = f"held-out {counted_as(evidence)} for a rate of {percent(found.alpha)}"
            return too_few(self, found.calibration.n, needed, what)
        figure = self._figure(found)
        if found.p >= self.level or found.rate <= self.times * found.alpha:
            return self.clear(figure)
        worst = found.scores.argsort(descending=True, stable=True)[: min(50, found.n_alarms)]
        examples = examples_at(evidence.versus.other, worst.tolist())
        sites = tuple(dict.fromkeys(key for _, key in found.names))
        sentence = (
            f"{percent(found.rate)} of OTHER ({percent(figure.low or 0.0)} to "
            f"{percent(figure.high or 1.0)}) score beyond a threshold that "
            f"{percent(found.alpha)} of rows like DATA exceed. {found.n_alarms:,} of {found.n:,} "
            f"rows; threshold from {found.calibration.n:,} held-out rows, "
            f"{plural(len(found.names), 'score')} added up."
        )
        return self.raised(
            Finding(
                self.code,
                "warning",
                sentence,
                figure,
                sites=sites,
                examples=tuple(examples),
                of_other=True,
                effect=min(1.0, found.rate),
                next=score_command(sites[-1]),
            )
        )

    def _figure(self, found: Alarm) -> Figure:
        low, high = clopper_pearson(found.n_alarms, found.n)
        return Figure(
            "alarm_rate",
            found.rate,
            low,
            high,
            "share",
            null=found.alpha,
            threshold=self.times * found.alpha,
            p=found.p,
            n_rows=len(found.scores),
            n_groups=found.n,
        )
