"""SND080: texts that begin or end with the same words."""

from dataclasses import dataclass
from typing import ClassVar, Final, final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_order import SIDES, shared_words
from sonde.findings.evidence.texts.writing import Writing, text_writing
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.text import percent, plural, shortened

SHOWN: Final = 60


@final
@dataclass(frozen=True)
class SND080(Rule):
    """Fraction of all characters that belong to a beginning or an ending shared by most texts."""

    note: float = 0.1
    warning: float = 0.25
    holders: float = 0.9
    words: int = 5

    title: ClassVar[str] = "Texts that begin or end with the same words"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shared words",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "Words that every text contains distinguish no text from another. They use up the "
        "context, and a mean over tokens is in part the mean of these words."
    )
    fix: ClassVar[str] = (
        "Remove these words (a licence, a header, a signature), unless the model was trained with "
        "them."
    )
    how: ClassVar[str] = (
        "Over the first 2,000 characters of at most 2,048 sampled texts, each distinct text "
        "once: the longest sequence of first words that 90 % of the texts have in common, and "
        "of last words. At least 5 words; a note if they are a tenth of the characters on "
        "average, a warning from a quarter. A note at most for data without labels, where the "
        "words may be a prompt."
    )
    false_positives: ClassVar[str] = "Prompts that the model was trained with."
    plant: ClassVar[str] = "A licence of 40 words before every text."
    twin: ClassVar[str] = "The same texts without it."

    def check(self, evidence: Evidence) -> Check:
        """Search for words that nearly all texts begin or end with."""
        writing = evidence.get(text_writing)
        if not isinstance(writing, Writing):
            return self.not_applicable(writing or "the inputs are not texts")
        repeated = max(
            (shared_words(writing.texts, side, self.holders) for side in SIDES),
            key=lambda shared: (len(shared.words) >= self.words, shared.share),
        )
        n = len(writing.texts)
        figure = Figure(
            "shared_characters", repeated.share, unit="share", threshold=self.note, n_rows=n
        )
        if len(repeated.words) < self.words or repeated.share < self.note:
            return self.clear(figure)
        severe = repeated.share >= self.warning and evidence.data.has_labels
        words = shortened(" ".join(repeated.words), SHOWN)
        return self.raised_with(
            "warning" if severe else "note",
            f"{len(repeated.holders):,} of {plural(n, 'text')} {repeated.side} with the same "
            f"{plural(len(repeated.words), 'word')} ({words!r}), {percent(repeated.share)} of all "
            "characters on average.",
            figure,
            examples=writing.examples(repeated.holders[:20]),
            effect=min(1.0, repeated.share) if severe else 0.05,
        )
