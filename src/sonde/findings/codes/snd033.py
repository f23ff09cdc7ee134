"""SND033: a class that cannot be separated from another class."""

import math
import statistics
from dataclasses import dataclass, replace
from typing import ClassVar, final

from sonde.findings.evidence.answers.answers import ClassAnswers, compared_answers
from sonde.findings.evidence.answers.labels import LabelEvidence, LabelRule, confusions, recalls
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command
from sonde.findings.words.text import percent, plural, shortened


@final
@dataclass(frozen=True)
class SND033(LabelRule):
    """Recall of each class at the best site, against the median recall."""

    below: float = 0.2
    level: float = 0.001

    title: ClassVar[str] = "A class that cannot be separated from the others"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("confused classes", "unreadable labels")
    breaks: ClassVar[Breaks] = "some answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND069",), levels=SERIOUS),)
    why: ClassVar[str] = (
        "The states do not separate this class: its labels are mixed up with those of another "
        "class, or the model has not learned the difference."
    )
    fix: ClassVar[str] = (
        "Merge the classes that are confused, or add rows of the class that the finding names."
    )
    how: ClassVar[str] = (
        "Held-out recall at the best site, with all classes weighted equally. Raised if its "
        "upper Wilson bound, at a level divided by the number of classes, is below the median "
        "recall minus 0.2. Rows of one group count as one. If the model's own answers are "
        "known, its recall of the class must be below that limit too."
    )
    false_positives: ClassVar[str] = (
        "Classes that differ in a feature that this model never learned."
    )
    plant: ClassVar[str] = "The labels of two classes are swapped at random."
    twin: ClassVar[str] = "A class of 30 rows."

    def judged(self, evidence: Evidence, found: LabelEvidence) -> Check:
        """Compare each class with the median recall."""
        tail = self.level / len(found.names)
        judged = recalls(found, found.best, tail)
        measured = [(k, *r) for k, r in enumerate(judged) if not math.isnan(r[0])]
        middle = statistics.median(recall for _, recall, *_ in measured)
        limit = middle - self.below
        poor = sorted((r for r in measured if r[3] < limit), key=lambda r: (r[1], r[0]))
        k, recall, low, high, n = poor[0] if poor else min(measured, key=lambda r: (r[1], r[0]))
        figure = Figure(
            "recall",
            recall,
            low,
            high,
            "share",
            null=middle,
            threshold=limit,
            direction="below",
            n_rows=n,
            n_groups=n,
            confidence=1 - 2 * tail,
        )
        if not poor:
            return self.clear(figure, _small(found))
        own = compared_answers(evidence)
        own = None if isinstance(own, str) or own.labels is None else own
        if own is not None:  # a probe says nothing of a class that the model itself recognises
            missed = {k for k, share in own_recalls(own).items() if share < limit}
            poor = [r for r in poor if r[0] in missed]
            if not poor:
                return self.clear(
                    figure, "the model's own answers separate the class from the others"
                )
            k = poor[0][0]
            recall, low, high, n = judged[k]
            figure = replace(figure, value=recall, low=low, high=high, n_rows=n, n_groups=n)
        sentence = self._sentence(found, k, figure, len(poor), own)
        site = found.sites[found.best].key
        return self.raised_with(
            "warning",
            sentence,
            figure,
            sites=(site,),
            classes=tuple(found.names[r[0]] for r in poor[:50]),
            effect=max(0.0, min(1.0, middle - recall)),
            next=read_command(site),
        )

    def _sentence(
        self,
        found: LabelEvidence,
        k: int,
        figure: Figure,
        n_poor: int,
        own: ClassAnswers | None,
    ) -> str:
        low, high, middle = (percent(v or 0.0) for v in (figure.low, figure.high, figure.null))
        taken = next((b for a, b, *_ in confusions(found, found.best) if a == k), None)
        rival = (
            ""
            if taken is None
            else f", most of the others are classified as {shortened(found.names[taken])!r}"
        )
        more = "" if n_poor == 1 else f" {plural(n_poor - 1, 'more class', 'more classes')} alike."
        if own is not None:
            more = f" The model itself recognises {percent(own_recalls(own)[k])} of them.{more}"
        return (
            f"Only {percent(figure.value)} of class {shortened(found.names[k])!r} are recognised "
            f"at the best site, {found.sites[found.best].name} ({low} to {high}; median "
            f"class {middle}){rival}. "
            f"{plural(figure.n_rows, 'row')}.{more}"
        )


def own_recalls(own: ClassAnswers) -> dict[int, float]:
    """Return the model's own recall of each class that the probe covers."""
    assert own.labels is not None
    truth, right = own.labels.truth, own.right.double()
    return {k: float(right[truth == k].mean()) for k in range(len(own.labels.names))
            if bool((truth == k).any())}  # fmt: skip


def _small(found: LabelEvidence) -> str:
    if not found.small:
        return ""
    return f"left out: {plural(len(found.small), 'class', 'classes')} with fewer than 30 rows"
