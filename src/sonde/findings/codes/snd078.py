"""SND078: texts of several languages or scripts."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import mannwhitneyu

from sonde.core.wording import install_extra
from sonde.findings.evidence.inputs.extreme_class import largest_class
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.texts.text_measures import can_tell_languages
from sonde.findings.evidence.texts.writing import LEAST_TEXTS, Writing, text_writing
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, sentence
from sonde.findings.words.text import listed, number, percent, plural

LEAST_LOSSES: Final = 5
"""Texts of the main language, and of the others, whose losses are compared."""


@final
@dataclass(frozen=True)
class SND078(Rule):
    """Fraction of the texts that are not in the commonest language, or script.

    Parameters
    ----------
    note, least : float
        Fraction of the texts: of all other languages for a note, of a language that is counted.
    cost : float, default=0.05
        What the other languages add to a language model's mean loss for a warning, in nats.
    level : float, default=0.001
        Of the rank test of their losses against those of the commonest language.
    """

    note: float = 0.05
    least: float = 0.01
    cost: float = 0.05
    level: float = 0.001

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
        is_main = np.array([name == main for name in names])
        losses = _losses(evidence, writing, is_main, is_other)
        added = 0.0 if losses is None else self._added(*losses)
        worse = ""
        if losses is not None and added:
            own, rest = (number(float(some.mean()), 3) for some in losses)
            worse = f"The model's loss is {rest} nats per token in the other {what}, and {own} in "
            worse += f"{main}."
        return self.raised_with(
            "warning" if worse else "note",
            sentence(f"{text}.", worse, "" if one is None else one.said),
            figure,
            examples=writing.examples(np.flatnonzero(is_other)),
            classes=() if one is None else (one.name,),
            effect=min(1.0, max(share, added)),
            next=rows_command(self.code),
        )

    def _added(self, main: Float[np.ndarray, "text"], other: Float[np.ndarray, "text2"]) -> float:
        """Return what the other languages add to the mean loss; 0 if it is little, or chance."""
        added = float(other.mean() - main.mean()) * len(other) / (len(main) + len(other))
        p = float(mannwhitneyu(other, main, alternative="greater").pvalue)
        return added if added >= self.cost and p < self.level else 0.0


def _losses(
    evidence: Evidence,
    writing: Writing,
    is_main: Bool[np.ndarray, "text"],
    is_other: Bool[np.ndarray, "text"],
) -> tuple[Float[np.ndarray, "text2"], Float[np.ndarray, "text3"]] | None:
    """Return a language model's losses on texts of the main language and of the others."""
    lens = evidence.get(measure_lens)
    if not isinstance(lens, LensEvidence) or lens.texts is None:
        return None
    read = zip(lens.texts.order.tolist(), lens.texts.losses, strict=False)
    mean = {example: float(loss.mean()) for example, loss in read}
    main, other = (
        np.array([mean[i] for i in writing.examples(np.flatnonzero(chosen)) if i in mean])
        for chosen in (is_main, is_other)
    )
    return (main, other) if min(len(main), len(other)) >= LEAST_LOSSES else None
