"""SND064: groups of texts that a language model predicts much worse."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._weak_rule import WeakGroupRule
from sonde.findings.evidence.inputs.weak_groups import WeakRows, weak_losses
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_losses import TextLosses, text_losses
from sonde.findings.rule import Breaks, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.text import number
from sonde.metrics.weak_groups import WeakGroup


@final
@dataclass(frozen=True)
class SND064(WeakGroupRule):
    """Loss per token in a group of texts minus that of the other texts."""

    warning: float = 0.5

    title: ClassVar[str] = "A group of texts that the language model predicts much worse"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("weak group",)
    breaks: ClassVar[Breaks] = "some answers"
    figure_name: ClassVar[str] = "weak_group_loss"
    unit: ClassVar[str] = "nats per token"
    why: ClassVar[str] = (
        "A mean loss hides a kind of text that the model has not learned: a language, a "
        "source, a broken encoding."
    )
    fix: ClassVar[str] = "Add texts like these to the training set."
    how: ClassVar[str] = (
        "Next-token loss of at most 160 texts of different groups (120 of a model of 50 million "
        "weights or more), 24 tokens of each (320 and 128 with --deep), minus the mean loss of "
        "all texts at similar positions (grouped by "
        "octaves). Groups are searched for on one half of the texts as in SND061, by the data's "
        "own columns, length and clusters of the states. On the other half, both means have a "
        "Student interval over groups, at 99 % over all groups tested there. The interval of "
        "the group must lie 0.5 nats per token above that of the rest, which is a perplexity "
        "1.6 times as large."
    )
    false_positives: ClassVar[str] = (
        "Texts that nobody can predict: random keys, tables of numbers."
    )
    plant: ClassVar[str] = (
        "Texts of one source, in which each word is always replaced by the same other word."
    )
    twin: ClassVar[str] = "The same texts, unchanged."

    def found(self, evidence: Evidence) -> WeakRows | str:
        """Return the groups of texts that may be predicted worse."""
        return _weak_texts(evidence)

    def said(self, group: WeakGroup) -> str:
        """Describe how much larger the loss and the perplexity are."""
        more = group.loss - group.elsewhere
        return (
            f"the loss per token is {number(more)} ({number(group.low - group.elsewhere_high)} "
            f"to {number(group.high - group.elsewhere_low)}) nats higher than in the other "
            f"texts, a perplexity {number(math.exp(more))} times as large."
        )


@once
def _weak_texts(evidence: Evidence) -> WeakRows | str:
    """Return the groups that may be predicted worse, or the reason why there are none."""
    losses = evidence.get(text_losses)
    if not isinstance(losses, TextLosses):
        return losses or "no model predicts a next token"
    return weak_losses(evidence, losses.row, losses.loss)
