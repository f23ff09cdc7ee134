"""SND084: weights that no training leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._effects import OF_PARTS
from sonde.findings.evidence.modules.altered_weights import (
    Altered,
    AlteredWeights,
    altered_weights,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND084(Rule):
    """Fraction of the weights that are rounded to few values, cut off at a bound, or copied.

    Parameters
    ----------
    purpose : float, default=0.5
        Fraction of the weights from which the alteration looks intended; that is a note.
    """

    purpose: float = 0.5

    title: ClassVar[str] = "Weights that are rounded, cut off or copied"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("near chance", "quantised", "untrained")
    breaks: ClassVar[Breaks] = "perhaps all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains((*OF_PARTS, "SND015", "SND068"), levels=SERIOUS),
    )
    why: ClassVar[str] = (
        "Training leaves different numbers in every layer. A weight of few distinct values, or "
        "with many entries at one bound, went through a number format that is too small; two "
        "equal weights are one that was loaded twice."
    )
    fix: ClassVar[str] = "Load this weight again from the file that training wrote, and compare."
    how: ClassVar[str] = (
        "Every matrix or kernel of at least 64 entries in a module that ran is tested, without a "
        "forward pass: at most 16 distinct values, with at least 8 entries for each; at least 5 "
        "% of the entries exactly at the largest absolute value; or every entry equal to that "
        "of another weight that does not share its memory. A note if half of the weights are "
        "like this: the model is then quantised, clipped or grown from copies on purpose, unless "
        "a language model of rounded weights predicts worse than counts of tokens. "
        "Weights whose rows or columns are all equal are left out."
    )
    false_positives: ClassVar[str] = (
        "Single layers that were quantised or clipped on purpose, and blocks that were added as "
        "copies of trained ones."
    )
    plant: ClassVar[str] = "A trained net with one layer's large weights cut off."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """List the weights by kind, the commonest kind first."""
        altered = evidence.get(altered_weights)
        if not isinstance(altered, AlteredWeights) or not altered.n:
            return self.not_applicable("no weight of 64 entries or more ran")
        share = len(altered.found) / altered.n
        figure = Figure("altered_weights", share, unit="share", null=0.0, threshold=0.0)
        if not altered.found:
            return self.clear(figure)
        kinds = {
            one.kind: [x for x in altered.found if x.kind == one.kind] for one in altered.found
        }
        ranked = sorted(kinds.values(), key=len, reverse=True)
        paths = tuple(dict.fromkeys(p for one in altered.found for p in (one.path, one.other) if p))
        is_purpose = share >= self.purpose and not _costs_the_model(ranked[0], evidence)
        return self.raised_with(
            "note" if is_purpose else "warning",
            sentence(*(_said(some) for some in ranked), f"{plural(altered.n, 'weight')} tested."),
            figure,
            sites=paths,
            effect=min(1.0, 0.5 + share / 2),
            next=read_command(ranked[0][0].path),
            location=Location(modules=paths),
        )


def _costs_the_model(some: Sequence[Altered], evidence: Evidence) -> bool:
    """Return whether a language model of rounded weights is worse than counts of tokens."""
    lens = evidence.get(measure_lens)
    if not isinstance(lens, LensEvidence) or not math.isfinite(lens.final):
        return False
    return some[0].kind == "rounded" and not lens.beats_counts


def _said(some: Sequence[Altered]) -> str:
    first, named = some[0], places([f"{one.path}.{one.name}" for one in some], 2)
    verb = "has" if len(some) == 1 else "have"
    if first.kind == "rounded":
        return f"{named} {verb} only {number(first.figure)} distinct values."
    if first.kind == "cut":
        return f"{named} {verb} {percent(first.figure)} of the entries at the largest size."
    return f"{named}: every entry equals that of {first.other}."
