"""SND077: texts with HTML tags, entities, or wrongly decoded characters."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from sonde.findings.evidence.inputs.extreme_class import largest_class
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.writing import Writing, text_writing
from sonde.findings.rule import Breaks, Check, Figure, Level, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, sentence
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND077(Rule):
    """Fractions of texts with HTML tags or entities, and with wrongly decoded characters."""

    note: float = 0.02
    warning: float = 0.2
    note_broken: float = 0.005
    warning_broken: float = 0.02

    title: ClassVar[str] = "Markup or wrongly decoded characters in texts"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("markup",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "Tags and entities are tokens without content that fill the context. A character that "
        "was decoded with the wrong encoding turns its word into another word."
    )
    fix: ClassVar[str] = (
        "Remove the markup (html.unescape, and a parser for tags); read the files as UTF-8."
    )
    how: ClassVar[str] = (
        "Over the first 2,000 characters of at most 2,048 sampled texts: texts with an HTML "
        "tag or entity (a note from 2 %, a warning from 20 %), and texts with U+FFFD or with "
        "UTF-8 that was read as one character per byte (a note from 0.5 %, a warning from 2 %)."
    )
    false_positives: ClassVar[str] = "Texts about HTML; models that were trained on markup."
    plant: ClassVar[str] = "Half of the texts in <p>, with &amp; for &."
    twin: ClassVar[str] = "The same texts without markup."

    def check(self, evidence: Evidence) -> Check:
        """Count texts with HTML and texts with wrongly decoded characters."""
        writing = evidence.get(text_writing)
        if not isinstance(writing, Writing):
            return self.not_applicable(writing or "the inputs are not texts")
        marked, broken = writing.marks > 0, writing.broken > 0
        shares, n = (float(marked.mean()), float(broken.mean())), len(writing.texts)
        levels = (
            _level(shares[0], self.note, self.warning),
            _level(shares[1], self.note_broken, self.warning_broken),
        )
        worse = 1 if levels[1] == "warning" or (levels[1] and not levels[0]) else 0
        limit = (self.note, self.note_broken)[worse]
        figure = Figure(("marked_texts", "broken_texts")[worse], shares[worse], unit="share",
                        threshold=limit, n_rows=n)  # fmt: skip
        if not any(levels):
            return self.clear(figure)
        texts = [
            f"{int(is_such.sum()):,} of {plural(n, 'text')} ({percent(share)}) hold {what}."
            for is_such, share, level, what in zip(
                (marked, broken), shares, levels,
                ("HTML tags or entities", "lost or wrongly decoded characters"), strict=True,
            )
            if level
        ]  # fmt: skip
        texts = texts[::-1] if worse and len(texts) > 1 else texts
        held = (marked, broken)[worse]
        one = largest_class(evidence.data, writing.order, held.astype(float))
        amount = (writing.marks, writing.broken)[worse]
        worst = np.argsort(-amount, kind="stable")[: int(held.sum())]
        return self.raised_with(
            "warning" if "warning" in levels else "note",
            sentence(*texts, "" if one is None else one.said),
            figure,
            examples=writing.examples(worst),
            figures=tuple(amount[worst].astype(float).tolist()),
            classes=() if one is None else (one.name,),
            effect=max(shares),
            fix=(_UNMARK, _READ)[worse],
            next=rows_command(self.code),
        )


_UNMARK = "Remove the markup: html.unescape for entities, a parser (html.parser) for tags."
_READ = (
    "Read the files as UTF-8 (open(path, encoding='utf-8')), and find the step that produced "
    "U+FFFD."
)


def _level(share: float, note: float, warning: float) -> Level | None:
    return "warning" if share >= warning else "note" if share >= note else None
