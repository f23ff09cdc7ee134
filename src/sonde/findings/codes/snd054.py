"""SND054: class proportions that differ, or classes that occur in one data set only."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.versus.label_comparison import (
    LabelComparison,
    accuracy,
    label_comparison,
)
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import too_few, two_names
from sonde.findings.words.text import listed, number, percent, plural, shortened

LEAST = 50


@final
@dataclass(frozen=True)
class SND054(Rule):
    """Half the summed absolute difference of label fractions, and labels of one data set only."""

    difference: float = 0.1
    level: float = 0.001

    title: ClassVar[str] = "Class proportions differ"
    theme: ClassVar[Theme] = "versus"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("drift",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "If class proportions differ, the accuracy changes although the model and the "
        "inputs of each class do not; a class that one data set lacks cannot be learned or tested "
        "there."
    )
    fix: ClassVar[str] = (
        "When you train or report accuracy, weight each row by the proportion of its class in "
        "OTHER divided by that in DATA; add rows of classes that one data set lacks, or leave "
        "these classes out of both data sets."
    )
    how: ClassVar[str] = (
        "The labels of all inputs are compared by name. The statistic is half the sum over "
        "labels of the absolute difference of their proportions. A note from 0.1 on if a "
        "chi-squared test of the counts has p below 0.001 and each data set has 50 labels; a "
        "warning if OTHER has labels that DATA lacks, on at least 1 % of its rows."
    )
    false_positives: ClassVar[str] = "Sets that were balanced on purpose; classes that are rare."
    plant: ClassVar[str] = "Two thirds of one class are left out of OTHER; a class has a new name."
    twin: ClassVar[str] = "A random split."

    def check(self, evidence: Evidence) -> Check:
        """Compare the labels of both data sets."""
        if evidence.versus is None:
            return self.not_applicable("there is no second data set (--versus OTHER)")
        comparison = label_comparison(evidence)
        if comparison is None or comparison.shift is None:
            return self.not_applicable("the labels of both data sets are not known")
        n = min(int(counts.sum()) for counts in comparison.labels)
        if n < LEAST:
            return too_few(self, n, LEAST, "labels on each side")
        value, p = comparison.shift
        figure = Figure(
            "share_difference", value, unit="share", null=0.0, threshold=self.difference, p=p,
            n_rows=int(comparison.labels[1].sum()),
        )  # fmt: skip
        new, total = comparison.only(1), int(comparison.labels[1].sum())
        n_new = sum(int(comparison.labels[1][comparison.classes.index(name)]) for name in new)
        if n_new >= 0.01 * total:
            return self._raised(evidence, self._new(evidence, new, n_new, total), figure, new)
        if value < self.difference or p >= self.level:
            return self.clear(figure)
        return self._raised(evidence, self._moved(evidence, comparison), figure, ())

    def _raised(self, evidence: Evidence, text: str, figure: Figure, new: tuple[str, ...]) -> Check:
        return self.raised_with(
            "warning" if new else "note",
            text,
            figure,
            classes=new,
            effect=min(1.0, figure.value),
        )

    def _new(self, evidence: Evidence, new: tuple[str, ...], n: int, total: int) -> str:
        own, theirs = two_names(evidence)
        names = listed([shortened(name, 20) for name in new], 3)
        text = (
            f"{plural(n, 'row')} of {theirs} ({percent(n / total)}) have labels that {own} does "
            f"not have: {names}."
        )
        is_judged = accuracy(evidence, of_other=True) is not None
        return f"{text} They count as wrong in the accuracy on {theirs}." if is_judged else text

    def _moved(self, evidence: Evidence, found: LabelComparison) -> str:
        own_name, theirs = two_names(evidence)
        shares = [counts / counts.sum() for counts in found.labels]
        k = int(np.argmax(np.abs(shares[1] - shares[0])))
        text = (
            f"{shortened(found.classes[k], 20)!r} is {percent(float(shares[0][k]))} of the "
            f"labels of {own_name} and {percent(float(shares[1][k]))} of {theirs} (over all labels "
            "the proportions differ by "
            f"{number(100 * float(np.abs(shares[1] - shares[0]).sum() / 2))} percentage points)."
        )
        if found.expected is None:
            return text
        own, other = accuracy(evidence), accuracy(evidence, of_other=True)
        if own is None or other is None:
            return text
        return (
            f"{text} The change in class proportions alone would change the accuracy from "
            f"{percent(own['value'])} to {percent(found.expected)}; it is "
            f"{percent(other['value'])}."
        )
