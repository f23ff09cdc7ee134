"""SND082: a tokenizer whose ids do not fit the model's token embeddings."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.answers.answers import class_answers
from sonde.findings.evidence.modules.fresh_weights import untrained_share
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.vocabulary_fit import VocabularyFit, compare_vocabulary
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import sentence
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND082(Rule):
    """Fraction of related words whose embeddings are nearer than those of unrelated words.

    Parameters
    ----------
    nearer : float, default=0.6
        Below it, with three standard errors added, the words do not fit.
    restored : float, default=0.75
        From it on, ids with a step fit.
    structure : float, default=0.1
        How much nearer than by chance the nearest neighbours in the table must be.
    untrained : float, default=0.5
        Fraction of untrained layers from which on nothing is judged.
    """

    nearer: float = 0.6
    restored: float = 0.75
    structure: float = 0.1
    untrained: float = 0.5

    title: ClassVar[str] = "The tokenizer's ids do not fit the token embeddings"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("near chance", "other tokenizer")
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(
            (
                *("SND028", "SND029", "SND036", "SND037", "SND039", "SND046", "SND061", "SND062"),
                *("SND064", "SND066", "SND067", "SND069"),
            ),
            levels=SERIOUS,
        ),
    )
    why: ClassVar[str] = (
        "With the tokenizer of another model, or with ids that are shifted, every text is "
        "nonsense to the model, and no error appears."
    )
    fix: ClassVar[str] = (
        "Load the tokenizer and the weights from the same folder; if tokens were added or removed, "
        "add or remove the same rows of the embedding table."
    )
    how: ClassVar[str] = (
        "At most 2,000 pairs (at least 100) of a token and its plural or its capitalised form are "
        "looked up in the table of token embeddings. In trained tables, the two tokens of a pair "
        "are near each other; the statistic is how often a pair is nearer than a word and the "
        "partner of another word. Raised if this fraction is below 60 % with three standard errors "
        "added, although the nearest neighbours in the table are nearer than those of normal rows "
        "with the same covariance (cosine larger by 0.1). A warning if ids that are shifted by a "
        "step of at most 16 fit in 75 % of the pairs, or if a classifier is no better than the "
        "commonest label; else a note. If no step fits, a model half of whose layers look "
        "untrained (SND003) is not judged."
    )
    false_positives: ClassVar[str] = (
        "Tables that were trained from a random initialisation on only a few thousand texts."
    )
    plant: ClassVar[str] = "A table with similar rows for similar words, and ids that are shifted."
    twin: ClassVar[str] = "The same table and its own ids."

    def check(self, evidence: Evidence) -> Check:
        """Compare related words with unrelated words in the table."""
        fit = evidence.get(compare_vocabulary)
        if not isinstance(fit, VocabularyFit):
            return self.not_applicable(fit or "no model was run")
        figure = Figure(
            "nearer_pairs", fit.nearer, fit.nearer - 2 * fit.error,
            fit.nearer + 2 * fit.error, unit="share", null=0.5, threshold=self.nearer,
            direction="below", n_rows=fit.n,
        )  # fmt: skip
        if fit.nearer + 3 * fit.error >= self.nearer:
            return self.clear(figure)
        if fit.near < fit.by_chance + self.structure:
            return self.clear(figure, "the table of embeddings looks untrained")
        shifted = fit.step != 0 and fit.stepped >= self.restored
        fresh = untrained_share(evidence) >= self.untrained
        if fresh and not shifted:
            return self.clear(figure, "the model's layers look untrained")
        text = (
            f"Token ids do not fit {fit.path}: of {plural(fit.n, 'pair')} such as "
            f"{fit.example[0]!r} and {fit.example[1]!r}, {percent(fit.nearer)} are nearer "
            "than unrelated words (chance: 50 %)."
        )
        more = ""
        if shifted:
            size, side = abs(fit.step), "lower" if fit.step < 0 else "higher"
            more = f"With every id {size} {side}, {percent(fit.stepped)} are nearer."
        return self.raised_with(
            "warning" if shifted or self._is_poor(evidence) else "note",
            sentence(text, more),
            figure,
            sites=(fit.path,),
            effect=min(1.0, 2 * abs(self.nearer - fit.nearer) + 0.5),
        )

    def _is_poor(self, evidence: Evidence) -> bool:
        """Return whether a classifier is no better than the commonest label."""
        answers = class_answers(evidence)
        if isinstance(answers, str):
            return False
        error = (answers.majority * (1 - answers.majority) / max(len(answers.truth), 1)) ** 0.5
        return answers.accuracy < answers.majority + 3 * error
