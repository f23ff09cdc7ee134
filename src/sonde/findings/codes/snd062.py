"""SND062: rare classes with far lower accuracy than common classes."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings.evidence.answers.answers import class_answers, right_rows
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at, shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import class_command, counted_as, sentence, too_few
from sonde.findings.words.text import listed, percent, plural, shortened
from sonde.stats.intervals import grouped_share


@final
@dataclass(frozen=True)
class SND062(Rule):
    """Accuracy on rare classes, compared with all other classes.

    Parameters
    ----------
    rare : float, default=0.5
        A class is rare below this share of the rows that it would have if classes were equal.
    gap : float, default=0.1
        Least distance of the two intervals, in shares of right answers.
    least : int, default=20
        Least number of rows (groups) that the rare classes have together.
    level : float, default=0.01
    """

    rare: float = 0.5
    gap: float = 0.1
    least: int = 20
    level: float = 0.01

    title: ClassVar[str] = "Accuracy on rare classes is far lower"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("confused classes",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "Accuracy counts rows, so common classes dominate it: a model that has not learned the "
        "rare classes can still look good."
    )
    fix: ClassVar[str] = (
        "Sample rows of rare classes more often in training, or divide their loss by the class "
        "frequency."
    )
    how: ClassVar[str] = (
        "Rare classes have less than half of the rows that classes of equal size would have. "
        "Their joint accuracy and that of all other classes have 99 % intervals, exact for rows "
        "without groups. The interval of the rare classes must end 10 percentage points below "
        "that of the others. The finding also gives the mean accuracy over classes."
    )
    false_positives: ClassVar[str] = (
        "Rare classes that nobody can recognise, such as a class 'other'."
    )
    plant: ClassVar[str] = "A trained net whose logits of three rare classes are too low."
    twin: ClassVar[str] = "The trained net on the same rows."

    def check(self, evidence: Evidence) -> Check:
        """Compare the accuracy on rare classes with that on all others."""
        right = right_rows(evidence)
        if right is None:
            reason = class_answers(evidence)
            return self.not_applicable(reason if isinstance(reason, str) else "no answers")
        shared = shared_rows(evidence)
        where = torch.nonzero(torch.isfinite(right)).flatten()
        label = shared.column("label")
        assert label is not None  # right_rows has it
        truth, right, group = label[where], right[where], shared.group[where]
        counts = torch.bincount(truth)
        present = torch.nonzero(counts).flatten()
        names = present[counts[present] < self.rare * len(truth) / max(len(present), 1)]
        if len(names) == 0:
            return self.not_applicable("no class is rare")
        is_rare = torch.isin(truth, names)
        n = len(torch.unique(group[is_rare]))
        if n < self.least:
            return too_few(self, n, self.least, f"{counted_as(evidence)} of rare classes")
        low, high = _interval(right[is_rare], group[is_rare], 1 - self.level)
        below, above = _interval(right[~is_rare], group[~is_rare], 1 - self.level)
        figure = Figure(
            "rare_class_gap",
            float(right[~is_rare].mean() - right[is_rare].mean()),
            below - high,
            above - low,
            "share",
            null=0.0,
            threshold=self.gap,
            n_rows=len(right),
            n_groups=len(torch.unique(group)),
            confidence=1 - self.level,
        )
        if below - high <= self.gap:
            return self.clear(figure)
        recall = {int(k): float(right[truth == k].mean()) for k in present}
        rare = sorted(names.tolist(), key=lambda k: recall[k])
        named = [class_name(evidence.data, k) for k in rare]
        text = (
            f"The model is correct on {percent(float(right[is_rare].mean()))} of "
            f"{plural(int(is_rare.sum()), 'row')} of rare classes "
            f"({listed([shortened(name, 20) for name in named], 2)}), and on the other inputs "
            f"on {percent(float(right[~is_rare].mean()))}."
        )
        even = percent(sum(recall.values()) / len(recall))
        more = f"Accuracy {percent(float(right.mean()))}, its mean over classes {even}."
        rows = where[torch.nonzero(is_rare & (right == 0)).flatten()]
        key = evidence.sites[-1].schema.key
        return self.raised_with(
            "warning",
            sentence(text, more),
            figure,
            sites=(key,),
            classes=tuple(named),
            examples=tuple(examples_at(evidence, rows.tolist())),
            effect=min(1.0, figure.value),
            next=class_command(named[0]),
        )


def _interval(
    right: Float[Tensor, "row"], group: Int[Tensor, "row"], level: float
) -> tuple[float, float]:
    member = torch.unique(group, return_inverse=True)[1]
    return grouped_share((right > 0).numpy(), member.numpy(), level)
