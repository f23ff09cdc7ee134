"""SND052: rows of OTHER that are out of distribution for DATA."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sonde.findings.evidence.answers.answers import right_rows
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at
from sonde.findings.evidence.versus.alarms import Alarm, Alarms
from sonde.findings.evidence.versus.comparison import alarms
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import counted_as, score_command, sentence, too_few, two_names
from sonde.findings.words.text import percent, plural, shortened
from sonde.stats.intervals import clopper_pearson

HALF = 0.5


@final
@dataclass(frozen=True)
class SND052(Rule):
    """Fraction of OTHER that raises an alarm, at a false-alarm rate calibrated on DATA."""

    times: float = 2.0
    level: float = 0.001
    close: float = 0.05

    title: ClassVar[str] = "Out-of-distribution rows in OTHER"
    theme: ClassVar[Theme] = "versus"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("drift",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "On out-of-distribution inputs, a model's answers are guesses. Compare OTHER with "
        "held-out rows: rows that the model was trained on score as less anomalous than new "
        "rows."
    )
    fix: ClassVar[str] = (
        "Inspect the rows listed; prepare them as DATA was prepared, or train on rows like them."
    )
    how: ClassVar[str] = (
        "Detectors fitted on half of DATA's groups at every site score the other half and "
        "OTHER. The detector with most alarms is chosen on a quarter of these rows of DATA and "
        "half of OTHER, then calibrated on the remaining rows of DATA, and its alarms are "
        "counted on the remaining rows of OTHER. A second test uses the calibrated sum of the "
        "logarithms of all p-values, with one row of each group. The number of alarms is "
        "compared with a beta-binomial distribution, because the threshold itself was "
        "estimated; p is corrected for the two tests. Raised if p is below 0.001 and the "
        "fraction of alarms above twice the false-alarm rate. A note if the model's accuracy on "
        "OTHER is within 5 percentage points of that on DATA and most rows above the threshold "
        "are answered correctly, as is usual for new rows compared with training rows."
    )
    false_positives: ClassVar[str] = (
        "OTHER is meant to differ; rows that come in unnamed groups; DATA that the model was "
        "trained on, without labels that would show it."
    )
    plant: ClassVar[str] = "One row in ten of OTHER is noise."
    twin: ClassVar[str] = "Another half of the same data."

    def check(self, evidence: Evidence) -> Check:
        """Count alarms on OTHER."""
        if evidence.versus is None:
            return self.not_applicable("there is no second data set (--versus OTHER)")
        alarm = alarms(evidence)
        if not isinstance(alarm, Alarms):
            return self.withheld(alarm)
        total = alarm.total
        if not total.possible:
            needed = total.calibration.needed(total.alpha)
            what = (
                f"held-out {counted_as(evidence)} for a false-alarm rate of {percent(total.alpha)}"
            )
            return too_few(self, total.calibration.n, needed, what)
        hits = [a for a in alarm.each if self._holds(alarm, a)]
        figure = self._figure(alarm, hits[0] if hits else alarm.each[0])
        if not hits:
            least = min(alarm.corrected(a.chance(a.n)) for a in alarm.each)
            theirs = two_names(evidence)[1]
            few = f"{plural(total.n, 'row')} of {theirs}: too few rows for p below {self.level:g}"
            return self.clear(figure, few if least >= self.level else "")
        return self._raised(evidence, alarm, hits[0], figure)

    def _holds(self, found: Alarms, alarm: Alarm) -> bool:
        surely = found.corrected(alarm.p) < self.level
        return surely and alarm.rate > self.times * alarm.alpha

    def _raised(self, evidence: Evidence, found: Alarms, alarm: Alarm, figure: Figure) -> Check:
        beyond = alarm.scores > alarm.calibration.threshold(alarm.alpha)
        worst = alarm.worst(int(beyond.sum()))
        answers, explained = self._answers(evidence, beyond)
        sites = tuple(dict.fromkeys(key for _, key in alarm.names))
        counts = (
            f"{alarm.n_alarms:,} of {plural(alarm.n, 'row')}, threshold from "
            f"{plural(alarm.calibration.n, 'held-out row')}."
        )
        return self.raised_with(
            "note" if explained else "warning",
            sentence(self._lead(evidence, found), answers, counts),
            figure,
            sites=sites,
            examples=tuple(examples_at(evidence.versus.other, worst)),
            figures=tuple(alarm.scores[worst].tolist()),
            of_other=True,
            effect=min(1.0, alarm.rate),
            next=score_command(sites[-1]),
            common=explained,
        )

    def _lead(self, evidence: Evidence, found: Alarms) -> str:
        first, (own, theirs) = found.each[0], two_names(evidence)
        low, high = clopper_pearson(first.n_alarms, first.n)
        text = (
            f"{percent(first.rate)} of {theirs} ({percent(low)} to {percent(high)}) score above "
            f"the threshold that {percent(first.alpha)} of rows like {own} exceed"
        )
        if found.lead is None:
            return f"{text}."
        ((method, key),) = first.names
        where = f"{method} at {shortened(key.removesuffix(':out'), 24)}"
        best = f"By {where}, the best of {len(found.total.names)} scores"
        return f"{best}, {text}; all scores combined: {percent(found.total.rate)}."

    def _answers(self, evidence: Evidence, beyond: Tensor) -> tuple[str, bool]:
        """Return the model's accuracy on OTHER in words, and whether it explains the alarms."""
        own, theirs = right_rows(evidence), right_rows(evidence.versus.other, new_classes=True)
        if own is None or theirs is None:
            return "", False
        data, other = float(own.nanmean()), float(theirs.nanmean())
        there = float(theirs[beyond].nanmean())
        mine_name, other_name = two_names(evidence)
        text = f"The model's accuracy is {percent(other)} on {other_name}"
        if 0.0 <= data - other <= self.close and there > HALF:
            return f"{text}, as expected for new rows.", True
        return f"{text} and {percent(data)} on {mine_name}.", False

    def _figure(self, found: Alarms, alarm: Alarm) -> Figure:
        low, high = clopper_pearson(alarm.n_alarms, alarm.n)
        return Figure(
            "alarm_rate",
            alarm.rate,
            low,
            high,
            "share",
            null=alarm.alpha,
            threshold=self.times * alarm.alpha,
            p=found.corrected(alarm.p),
            n_rows=len(alarm.scores),
            n_groups=alarm.n,
        )
