"""SND046: a class that the model misses although its states encode it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from scipy.stats import norm

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.answers import ClassAnswers, ClassAnswersRule
from sonde.findings.evidence.answers.labels import LabelEvidence
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at
from sonde.findings.evidence.trials.answer_trials import LogitConstant, logit_constant
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import class_command, sentence
from sonde.findings.words.text import listed, percent, plural, shortened


@final
@dataclass(frozen=True)
class SND046(ClassAnswersRule):
    """Accuracy of a probe of the last site minus accuracy of the model, class by class."""

    lag: float = 0.2
    gain: float = 0.05
    level: float = 0.001

    title: ClassVar[str] = "A class that the model misses although its states encode it"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("confused classes",)
    breaks: ClassVar[Breaks] = "some answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND069",), levels=SERIOUS),
        Explains(("SND061", "SND062", "SND063", "SND064")),
    )
    why: ClassVar[str] = (
        "One row of the head is missing, overwritten or biased, or training never asked for "
        "this class: its inputs are assigned to other classes although everything before the "
        "head is correct."
    )
    fix: ClassVar[str] = (
        "Weight this class higher in the loss, or change the bias of its logit, and retrain the "
        "head."
    )
    how: ClassVar[str] = (
        "For each class, over its rows and those that a held-out linear probe of the last site "
        "assigns to it: accuracy of the probe minus accuracy of the model. The lower confidence "
        "limit of that difference, with standard errors over groups and a level of 0.1 % "
        "corrected for the number of classes, must be above 20 percentage points, and the "
        "model's recall of the class below half of its median recall. The model as a whole must "
        "be more accurate than the commonest label (else SND039). If no class lags, a constant "
        "on one logit, chosen on half of the rows, is a warning as well if it raises the "
        "accuracy of the other half by 5 percentage points (sign test, 1 %) and constants on "
        "the other logits add nothing."
    )
    false_positives: ClassVar[str] = (
        "A rare class that training made the model avoid because false alarms were costly."
    )
    plant: ClassVar[str] = "A trained net one of whose logits is far too low."
    twin: ClassVar[str] = "The trained net."

    def judged(self, evidence: Evidence, found: ClassAnswers, labels: LabelEvidence) -> Check:
        """Compare the recall of every class with that of the probe."""
        own = found.right.double()
        of_class = [labels.truth == k for k in range(len(labels.names))]
        recall = torch.stack([own[m].mean() for m in of_class])
        figures = [self._figure(found, labels, k, m) for k, m in enumerate(of_class)]
        lags = torch.tensor([f.value for f in figures])
        worst = figures[int(lags.argmax())]
        middle = float(recall.median() if len(of_class) > 2 else recall.max())
        probe, moved = labels.sites[-1].accuracy, logit_constant(evidence)
        if found.accuracy <= max(found.majority, probe / 2) and not self._mends(moved, probe):
            # What names hardly any class rightly misses one by chance: SND037 or SND039 tell that.
            return self.clear(
                worst, "the whole model is far less accurate than a probe of its last layer"
            )
        missed = [
            k
            for k, f in enumerate(figures)
            if f.low is not None and f.low > self.lag and float(recall[k]) < middle / 2
        ]
        if not missed:
            return self._off_by_a_constant(evidence, found, labels, moved) or self.clear(worst)
        missed.sort(key=lambda k: -float(lags[k]))
        return self._raised(evidence, found, labels, missed, figures[missed[0]])

    def _mends(self, moved: LogitConstant | None, known: float) -> bool:
        """Return whether a bias on one logit closes the gap to the probe, up to 10 points."""
        if moved is None or not moved.trial.holds:
            return False
        return float(moved.trial.after.mean()) > known - self.lag / 2

    def _figure(
        self, found: ClassAnswers, labels: LabelEvidence, k: int, mine: torch.Tensor
    ) -> Figure:
        even, n = labels.sites[-1].even, int(mine.sum())
        rows = mine | (even == k)
        lag = ((even == labels.truth).double() - found.right.double())[rows]
        group = found.group[rows]
        n_groups = len(torch.unique(group))
        value = float(lag.sum()) / n
        se = group_error(lag / n, group, n_groups) if n_groups > 1 else 1.0
        level = self.level / len(labels.names)
        z = float(norm.isf(level))
        return Figure(
            "recall_lag", value, value - z * se, value + z * se, "share", null=0.0,
            threshold=self.lag, n_rows=n, n_groups=n_groups, confidence=1 - 2 * level,
        )  # fmt: skip

    def _raised(
        self,
        evidence: Evidence,
        found: ClassAnswers,
        labels: LabelEvidence,
        missed: list[int],
        figure: Figure,
    ) -> Check:
        k = missed[0]
        of_class = labels.truth == k
        names = [shortened(labels.names[j], 20) for j in missed]
        own = percent(float(found.right[of_class].double().mean()))
        probe = percent(float((labels.sites[-1].even[of_class] == k).double().mean()))
        text = (
            f"The model recognises {own} of the rows of {names[0]}, a linear probe on its last "
            f"layer recognises {probe} ({plural(figure.n_rows, 'row')}); on all rows its "
            f"accuracy is {percent(found.accuracy)}."
        )
        more = f"The same holds for {listed(names[1:])}." if len(names) > 1 else ""
        moved = logit_constant(evidence)
        trial = None if moved is None or not moved.trial.holds else moved.trial
        fix = "" if moved is None or trial is None else _mending(moved)
        missing = torch.nonzero(of_class & ~found.right).flatten()
        wrong = labels.where[missing]
        return self.raised_with(
            "warning",
            sentence(text, more),
            figure,
            sites=(labels.sites[-1].key,),
            examples=tuple(examples_at(evidence, wrong.tolist())),
            figures=found.given(missing),
            classes=tuple(labels.names[j] for j in missed),
            effect=min(1.0, figure.value * float(of_class.double().mean())),
            next=class_command(labels.names[missed[0]]),
            fix=fix,
            trial=trial,
        )

    def _off_by_a_constant(
        self,
        evidence: Evidence,
        found: ClassAnswers,
        labels: LabelEvidence,
        moved: LogitConstant | None,
    ) -> Check | None:
        """Return a warning if a constant on one logit corrects many answers."""
        if moved is None or not moved.is_all or not moved.trial.holds:
            return None
        before, after = (float(x.mean()) for x in (moved.trial.before, moved.trial.after))
        if after - before < self.gain or moved.label not in labels.numbers:
            return None
        k, n = moved.label, len(found.truth)
        answered, held = (float((x == k).double().mean()) for x in (found.answer, found.truth))
        own = (found.answer == k) | (found.truth == k)
        rows = torch.nonzero(own & ~found.right).flatten()
        name = labels.names[labels.numbers.index(k)]
        figure = Figure(
            "accuracy_gain", after - before, unit="share", null=0.0, threshold=self.gain,
            p=moved.trial.p, n_rows=len(moved.trial.rows),
        )  # fmt: skip
        return self.raised_with(
            "warning",
            f"The model answers {shortened(name, 20)} for {percent(answered)} of "
            f"{plural(n, 'row')}, but {percent(held)} have this label: a constant offset of its "
            "logit explains this.",
            figure,
            sites=(labels.sites[-1].key,),
            examples=tuple(examples_at(evidence, labels.where[rows].tolist())),
            classes=(name,),
            effect=min(1.0, after - before),
            next=class_command(name),
            fix=_mending(moved),
            trial=moved.trial,
            location=Location(answers=True),
        )


def _mending(moved: LogitConstant) -> str:
    """Return the advice to add a constant to a logit, and its effect on held-out rows."""
    before, after = (percent(float(x.mean())) for x in (moved.trial.before, moved.trial.after))
    fix = (
        f"{moved.line}: correct on {after} of "
        f"{plural(len(moved.trial.rows), 'row')} held out from the choice, instead of {before}."
    )
    if not moved.is_all:
        fix += " Biases of other classes are wrong too, so the fault lies before the head."
    return fix
