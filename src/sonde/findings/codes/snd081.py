"""SND081: texts whose words are in random order."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_order import word_order
from sonde.findings.evidence.texts.writing import Writing, text_writing
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.text import number, plural


@final
@dataclass(frozen=True)
class SND081(Rule):
    """Number of repeated pairs of neighbouring words, over that after random shuffling.

    Parameters
    ----------
    ratio : float, default=1.15
        What the ratio of texts in sentences exceeds. In random order it is 1, so that a ratio
        clearly below ``1 / ratio`` comes from texts that repeat themselves.
    pairs : int, default=200
        Pairs of texts in random order that the test needs.
    sentences : float, default=0.5
        Fraction of texts with a word twice and punctuation; below it the texts are lists of words.
    """

    ratio: float = 1.15
    pairs: int = 200
    sentences: float = 0.5

    title: ClassVar[str] = "The words of the texts are in random order"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shared words",)
    breaks: ClassVar[Breaks] = "all answers"
    why: ClassVar[str] = (
        "A model that was trained on sentences gets lists of their words: any information that "
        "depends on neighbouring words is lost."
    )
    fix: ClassVar[str] = (
        "Find the step that changes the order of words (a set of words, a join of sorted tokens, a "
        "bag of words written out), and read the original texts."
    )
    how: ClassVar[str] = (
        "Over the first 2,000 characters of at most 2,048 sampled texts of at least 12 words, "
        "40,000 words in all: pairs of neighbouring words that also occur in another text are "
        "counted, in the given order and 20 times with the words of each text in random order. "
        "Sentences have far more such pairs than shuffled words. A warning if the ratio of both "
        "counts is below 1.15 with three standard deviations added, and not clearly below 0.87 "
        "(1 / 1.15): texts that repeat the same lines have fewer different pairs than shuffled "
        "words. There must be 200 pairs in random order, and half of the texts must have a "
        "repeated word and punctuation (lists of keywords lack one of them)."
    )
    false_positives: ClassVar[str] = "Texts that are lists by their nature, with repeated entries."
    plant: ClassVar[str] = "The words of every text in random order."
    twin: ClassVar[str] = "The same texts."

    def check(self, evidence: Evidence) -> Check:
        """Compare the repeated pairs of words with those of shuffled texts."""
        writing = evidence.get(text_writing)
        if not isinstance(writing, Writing):
            return self.not_applicable(writing or "the inputs are not texts")
        order = word_order(writing.texts, evidence.data.seed)
        if order.mean < self.pairs:
            return self.not_applicable("too few pairs of words occur in several texts")
        figure = Figure("shared_word_pairs", order.ratio, unit="ratio", null=1.0,
                        threshold=self.ratio, direction="below", n_rows=order.n)  # fmt: skip
        end = order.ratio + 3 * order.error
        if end >= self.ratio or end < 1 / self.ratio or order.sentences < self.sentences:
            return self.clear(figure)
        return self.raised_with(
            "warning",
            f"The order of words is random: {plural(order.found, 'pair')} of neighbouring words "
            f"occur in several of {plural(order.n, 'text')}, {number(order.ratio)} times as many "
            "as after shuffling the words of each text.",
            figure,
            effect=0.5,
        )
