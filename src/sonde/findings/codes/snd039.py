"""SND039: accuracy hardly better than that of the commonest label."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.answers import ClassAnswers, ClassAnswersRule
from sonde.findings.evidence.answers.labels import LabelEvidence, class_name
from sonde.findings.evidence.half_intervals import Z
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import percent, plural, shortened


@final
@dataclass(frozen=True)
class SND039(ClassAnswersRule):
    """Accuracy minus the frequency of the commonest label: of the model, and of a probe."""

    errors: float = 3.0
    part: float = 0.25
    doubt: float = 0.5

    title: ClassVar[str] = "Accuracy hardly better than the commonest label"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("commonest label",)
    breaks: ClassVar[Breaks] = "guesses"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND069",), levels=SERIOUS),
        Explains(("SND061", "SND062", "SND063", "SND064")),
    )
    why: ClassVar[str] = (
        "A model that gives the same answer to every input, or guesses, is as accurate as "
        "this model: its head was not loaded or not trained, or training collapsed to the "
        "commonest class."
    )
    fix: ClassVar[str] = (
        "Prepare inputs as in training and load the head again; if both are correct, train longer."
    )
    how: ClassVar[str] = (
        "The model's accuracy minus that of the commonest label, paired by row, with a "
        "standard error over groups. Raised if this difference, plus 3 standard errors, is "
        "less than a quarter of the gain of a held-out linear probe on the model's own states "
        "at its best site. A note if the model's probabilities are nearly even (mean entropy "
        "at least half of the maximum), as in an untrained model."
    )
    false_positives: ClassVar[str] = (
        "Few labelled rows of a rare class: even a useful model can be no more accurate than "
        "the commonest label alone."
    )
    plant: ClassVar[str] = "A trained net whose head has fallen back to one class."
    twin: ClassVar[str] = "The trained net."

    def judged(self, evidence: Evidence, found: ClassAnswers, labels: LabelEvidence) -> Check:
        """Compare the accuracy with the frequency of the commonest label and with a probe."""
        commonest = torch.mode(found.truth).values
        lead = found.right.double() - (found.truth == commonest).double()
        n_groups = len(torch.unique(found.group))
        value, se = float(lead.mean()), group_error(lead / len(lead), found.group, n_groups)
        gain = labels.sites[labels.best].accuracy - found.majority
        figure = Figure(
            "accuracy_lead", value, value - Z * se, value + Z * se, "share", null=0.0,
            n_rows=len(lead), n_groups=n_groups,
        )  # fmt: skip
        if value + self.errors * se >= self.part * gain:
            return self.clear(figure)
        return self._raised(evidence, found, labels, figure)

    def _raised(
        self, evidence: Evidence, found: ClassAnswers, labels: LabelEvidence, figure: Figure
    ) -> Check:
        best = labels.sites[labels.best]
        low, high = found.interval
        text = (
            f"The model is correct on {percent(found.accuracy)} of rows ({percent(low)} to "
            f"{percent(high)}), always answering the commonest label on "
            f"{percent(found.majority)}; a linear probe on its states reaches "
            f"{percent(best.accuracy)} at {best.name}."
        )
        answer = torch.mode(found.answer).values
        share = float((found.answer == answer).double().mean())
        name = shortened(class_name(evidence.data, int(answer)), 20)
        hint = (
            f"{percent(share)} of the model's answers are {name}." if share > found.majority else ""
        )
        return self.raised_with(
            "note" if found.doubt >= self.doubt else "warning",
            sentence(text, hint, f"{plural(figure.n_rows, 'row')}."),
            figure,
            sites=(labels.sites[-1].key,),
            effect=min(1.0, best.accuracy - found.accuracy),
            next=read_command(best.key),
        )
