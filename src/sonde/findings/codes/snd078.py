"""SND078: texts of several languages or scripts."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from sonde.core.wording import install_extra
from sonde.findings.evidence.inputs.extreme_class import largest_class
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_measures import can_tell_languages
from sonde.findings.evidence.texts.writing import LEAST_TEXTS, Writing, text_writing
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, sentence
from sonde.findings.words.text import listed, percent, plural


@final
@dataclass(frozen=True)
class SND078(Rule):
    """Fraction of the texts that are not in the commonest language, or script."""

    note: float = 0.05
    least: float = 0.01

    title: ClassVar[str] = "Texts of several languages"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("unknown tokens",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A model that learned one language gives random answers to texts in another, and an "
        "accuracy or loss over all texts hides this."
    )
    fix: ClassVar[str] = (
        "Evaluate each language separately: add a column with the language of each text, and "
        "use it as --group-column, or scan each part."
    )
    how: ClassVar[str] = (
        "Over the first 2,000 characters of at most 2,048 sampled texts, without markup and "
        "addresses: the language is identified by py3langid if a text has 40 letters and the "
        "probability is 0.9; else the Unicode script of most letters is used. Languages of less "
        "than 1 % of the texts, or fewer than 5, are not counted. A note if at least 5 % of the "
        "texts are in other languages."
    )
    false_positives: ClassVar[str] = "Languages that are close to each other, in short texts."
    plant: ClassVar[str] = "A fifth of the texts in German."
    twin: ClassVar[str] = "English texts alone."

    def check(self, evidence: Evidence) -> Check:
        """Count languages, or scripts if languages cannot be identified."""
        writing = evidence.get(text_writing)
        if not isinstance(writing, Writing):
            return self.not_applicable(writing or "the inputs are not texts")
        by_language = can_tell_languages()
        names = writing.languages if by_language else writing.scripts
        reason = (
            ""
            if by_language
            else f"only scripts were identified; to identify languages: {install_extra('text')}"
        )
        languages = [name for name in names if name is not None]
        if len(languages) < LEAST_TEXTS:
            return self.withheld(
                f"{plural(len(languages), 'text is', 'texts are')} long enough to identify their "
                "language"
            )
        counts = Counter(languages)
        main, n = counts.most_common(1)[0]
        least = max(5.0, self.least * len(languages))
        others = {name: c for name, c in counts.most_common() if name != main and c >= least}
        share = sum(others.values()) / len(languages)
        figure = Figure("other_languages", share, unit="share", threshold=self.note,
                        n_rows=len(languages))  # fmt: skip
        if share < self.note:
            return self.clear(figure, reason)
        parts = {main: n, **others}
        shares = listed([f"{name} {percent(c / len(languages))}" for name, c in parts.items()], 4)
        what = "languages" if by_language else "scripts"
        is_other = np.array([name is not None and name in others for name in names])
        one = largest_class(evidence.data, writing.order, is_other.astype(float))
        text = f"The texts are of {len(parts)} {what}: {shares} of {plural(len(languages), 'text')}"
        return self.raised_with(
            "note",
            sentence(f"{text}.", "" if one is None else one.said),
            figure,
            examples=writing.examples(np.flatnonzero(is_other)),
            classes=() if one is None else (one.name,),
            effect=min(1.0, share),
            next=rows_command(self.code),
        )
