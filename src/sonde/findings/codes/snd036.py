"""SND036: the states carry no information about the labels."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from scipy.stats import binom, chi2, norm

from sonde.findings.evidence.answers.answers import compared_answers
from sonde.findings.evidence.answers.labels import LabelEvidence, LabelRule
from sonde.findings.evidence.answers.number_answers import number_answers, number_rows
from sonde.findings.evidence.record import Evidence, SiteEvidence, rows_as_float
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Section, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import number, percent, plural
from sonde.stats.intervals import wilson


@final
@dataclass(frozen=True)
class SND036(LabelRule):
    """Held-out accuracy no better than always predicting the largest class, at every site."""

    level: float = 0.001
    hidden: float = 0.1
    size: float = 3.0

    title: ClassVar[str] = "The states carry no information about the labels"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = (
        "near chance",
        "commonest label",
        "unreadable labels",
    )
    breaks: ClassVar[Breaks] = "some answers"
    section: ClassVar[Section] = "labels"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(
            ("SND031", "SND032", "SND033", "SND034"),
            void="the labels cannot be predicted from these states",
        ),
        Explains(("SND069",), levels=SERIOUS),
    )
    why: ClassVar[str] = (
        "Nothing about labels can be learned from these states: the labels are shuffled, belong to "
        "another column, or describe something that this model does not see."
    )
    fix: ClassVar[str] = (
        "Compare labels and inputs of a few rows by eye: the files of inputs and labels may "
        "have been joined wrongly."
    )
    how: ClassVar[str] = (
        "At every site, the held-out accuracy lies below the accuracy that always predicting "
        "the largest class reaches by chance (binomial, 99.9 %), and the variance between "
        "classes is less than random labels explain by chance: (classes - 1) / (n - 1) times "
        "chi2 / df at 99.9 % over all sites, where df is (classes - 1) times the participation "
        "ratio of the site. Unknown if the rows cannot exclude an accuracy 10 percentage points "
        "above the largest class; passed if the model's own answers are more accurate than the "
        "largest class. Of a regression: the correlation of answers and targets is below chance "
        "(99.9 %), no held-out linear probe has an error 3 standard errors below that of the "
        "mean, and the standard deviation of the answers is within a factor of 3 of that of the "
        "targets, as if the targets belonged to other rows."
    )
    false_positives: ClassVar[str] = (
        "Labels that depend on something that a mean over tokens hides."
    )
    plant: ClassVar[str] = "Labels shuffled over rows."
    twin: ClassVar[str] = "The true labels, and a net with random weights."

    def check(self, evidence: Evidence) -> Check:
        """Search for information about the labels, or about the targets of a regression."""
        numbers, rows = number_answers(evidence), number_rows(evidence)
        if isinstance(numbers, str) or isinstance(rows, str):
            return super().check(evidence)
        _, answers, truth = rows
        n = len(torch.unique(numbers.group))
        site, error = numbers.probes[numbers.best]
        gain = (numbers.mean - error) / numbers.mean.mean()
        reached, noise = float(gain.mean()), float(gain.std()) / n**0.5
        size = float(answers.std() / truth.std())
        bound = float(norm.isf(self.level / 2)) / n**0.5
        figure = Figure(
            "correlation", numbers.correlation, null=0.0, threshold=bound, direction="below",
            n_rows=len(answers), n_groups=n,
        )  # fmt: skip
        if abs(numbers.correlation) > bound or reached > 3 * noise:
            return self.clear(figure)
        if not 1 / self.size < size < self.size or bound > self.hidden**0.5:
            return self.clear(figure, "the answers do not vary as the targets do")
        text = (
            f"The model's answers do not follow the targets (correlation "
            f"{number(numbers.correlation, 2)}), nor do its states (R^2 of the best held-out "
            f"probe: {number(reached, 2)}), but they vary as much as the targets: these look like "
            f"the targets of other rows. {plural(len(answers), 'row')}."
        )
        return self.raised_with(
            "warning", sentence(text), figure, sites=(site,), effect=1.0,
            next=read_command(site.removesuffix(":out")), location=Location(answers=True),
        )  # fmt: skip

    def judged(self, evidence: Evidence, found: LabelEvidence) -> Check:
        """Search for information about the labels at every site."""
        n, best = found.n_groups, found.sites[found.best]
        bound = float(binom.ppf(1 - self.level, n, found.majority)) / n
        low, high = wilson(round(best.accuracy * n), n, 0.99)
        figure = Figure(
            "accuracy",
            best.accuracy,
            low,
            high,
            "share",
            null=found.majority,
            threshold=bound,
            direction="below",
            n_rows=found.n_rows,
            n_groups=n,
            confidence=0.99,
        )
        n_classes = len(found.names) + len(found.small)
        rows = evidence.n_groups if evidence.data.grouped else self._labelled(evidence)
        null = (n_classes - 1) / max(rows - 1, 1)
        explained = [s.eta2 for s in found.sites]
        luck = [self._luck(s, n_classes, len(found.sites)) for s in evidence.sites]
        if best.accuracy > bound or any(
            share >= null * times for share, times in zip(explained, luck, strict=True)
        ):
            return self.clear(figure)
        answers = compared_answers(evidence)
        if not isinstance(answers, str) and answers.interval[0] > found.majority:
            return self.clear(
                figure, "the model's own answers predict the label, though not linearly"
            )
        if high > found.majority + self.hidden:
            return self.withheld(
                f"the states carry no trace of the labels, but {plural(n, 'row')} do not exclude "
                f"an accuracy {number(100 * self.hidden)} percentage points above the largest "
                "class"
            )
        return self._raised(found, figure, max(explained), null)

    def _luck(self, site: SiteEvidence, n_classes: int, n_sites: int) -> float:
        """Return the variance fraction that random labels explain by luck, over its mean."""
        freedom = (n_classes - 1) * _participation(site)
        return float(chi2.isf(self.level / n_sites, freedom)) / freedom

    @staticmethod
    def _labelled(evidence: Evidence) -> int:
        return int((evidence.data.label >= 0).sum())

    def _raised(self, found: LabelEvidence, figure: Figure, explained: float, null: float) -> Check:
        best = found.sites[found.best]
        text = (
            f"At no site do the states predict the label: at best {percent(figure.value)} of "
            "held-out "
            f"rows are correct ({best.name}); the largest class "
            "alone gives "
            f"{percent(found.majority)}. "
            f"Classes explain {percent(explained)} of the variance, shuffled labels "
            f"{percent(null)}. {plural(found.n_rows, 'row')}."
        )
        # The interval is only used to exclude a trace: the level does not hang on it.
        return self.raised_with(
            "warning",
            text,
            Figure(**{**vars(figure), "low": None, "high": None}),
            sites=tuple(s.key for s in found.sites),
            effect=1.0,
            next=read_command(best.key),
            location=Location(answers=True),
        )


def _participation(site: SiteEvidence) -> float:
    """Return the participation ratio of the rows, their effective number of directions."""
    scatter = site.moments.scatter
    if scatter.ndim == 1:
        rows = rows_as_float(site.sample)
        z = rows - rows.mean(0)
        scatter = z @ z.T if len(z) < z.shape[1] else z.T @ z
    square = float(scatter.square().sum())
    return float(scatter.trace().square()) / square if square > 0 else 1.0
