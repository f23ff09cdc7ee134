"""SND055: columns of a table, or measures of texts, that differ between DATA and OTHER."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.versus.column_moves import (
    OF_PICTURES,
    ColumnComparison,
    ColumnMove,
    column_comparison,
)
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import two_names
from sonde.findings.words.text import LONGEST, number, percent, plural


@final
@dataclass(frozen=True)
class SND055(Rule):
    """Largest difference of a column's cumulative distributions in DATA and in OTHER."""

    effect: float = 0.15

    title: ClassVar[str] = "Columns or images whose distribution changed"
    theme: ClassVar[Theme] = "versus"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("worse in production", "drift")
    breaks: ClassVar[Breaks] = "some answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND051", "SND052"), levels=SERIOUS),)
    why: ClassVar[str] = (
        "A column in another unit, two swapped columns, a sensor stuck at one value or "
        "texts in capitals give wrong answers without an error."
    )
    fix: ClassVar[str] = "Prepare these columns of OTHER as they are prepared in DATA."
    how: ClassVar[str] = (
        "At most 2,048 rows of different groups are taken from each data set, subsampled to "
        "equal class proportions if these differ (SND054). Tests: for numbers, twice the "
        "smaller p of the Kolmogorov-Smirnov and the rank-sum test; for missing values and for "
        "a single repeated value, Fisher's exact test; for words, chi-squared; with Holm's "
        "correction for all. Half of the rows are used to choose a factor between units and the "
        "value whose frequency rises most; the other half to test both. Texts are compared by "
        "length, capitals, non-ASCII characters, digits, punctuation, line breaks, HTML, "
        "language, script, unknown tokens and byte tokens; images by brightness, contrast and "
        "sharpness (differences between neighbouring pixels, relative to noise of the same "
        "contrast). Raised if p is below 0.001 and the cumulative distributions differ by at "
        "least 0.15 (fractions of missing or repeated values by at least 0.05, frequencies of "
        "words by at least 0.1): a warning for columns that the model reads, else a note. A "
        "factor or a swap of two columns is named if it removes two thirds of the difference on "
        "the held-out rows."
    )
    false_positives: ClassVar[str] = "Columns that differ by design, such as a date."
    plant: ClassVar[str] = (
        "A column in millimetres instead of metres, two swapped columns, a column stuck at one "
        "value."
    )
    twin: ClassVar[str] = "A random split."

    def check(self, evidence: Evidence) -> Check:
        """Compare the columns that both data sets have."""
        comparison = column_comparison(evidence)
        if isinstance(comparison, str):
            return self.not_applicable(comparison)
        moves = [m for m in comparison.moves if m.effect >= self.effect or m.kind in _SMALL]
        if not moves:
            figure = Figure("largest_difference", 0.0, unit="share", null=0.0,
                            threshold=self.effect, n_rows=sum(comparison.n_rows))  # fmt: skip
            return self.clear(figure)
        worst = max(moves, key=lambda m: m.effect)
        figure = Figure(
            "largest_difference", worst.effect, unit="share", null=0.0, threshold=self.effect,
            p=min(m.p for m in moves), n_rows=sum(comparison.n_rows),
        )  # fmt: skip
        return self.raised_with(
            "warning" if any(m.is_input for m in moves) else "note",
            self._sentence(evidence, comparison),
            figure,
            effect=min(1.0, worst.effect),
            fix=_fix(evidence, comparison, moves),
        )

    def _sentence(self, evidence: Evidence, found: ColumnComparison) -> str:
        theirs = two_names(evidence)[1]
        texts = list(dict.fromkeys(m.said for m in found.moves))
        text = f"{len(found.moves)} of {plural(found.n_columns, 'column')} changed in {theirs}: "
        if found.n_columns == 1 or all(m.column in _PICTURE_CAUSES for m in found.moves):
            text = f"In {theirs} "
        kept: list[str] = []
        for line in texts:
            more = len(texts) - len(kept) - 1
            tail = f"; and {more} more." if more else "."
            if len(text) + sum(len(k) + 2 for k in kept) + len(line) + len(tail) > LONGEST:
                break
            kept.append(line)
        rest = len(texts) - len(kept)
        return f"{text}{'; '.join(kept)}{f'; and {rest} more' if rest else ''}."


_PICTURE_CAUSES = {
    OF_PICTURES["brightness"]: "exposure, scale of pixels",
    OF_PICTURES["contrast"]: "gain, scale of pixels",
    OF_PICTURES["sharpness"]: "focus, original size before resizing, compression, noise",
}
_SMALL = ("missing", "one value", "new values")


def _fix(evidence: Evidence, found: ColumnComparison, moves: list[ColumnMove]) -> str:
    """Return the lines of code that undo the changes, and what the model gains by them."""
    if all(m.column in _PICTURE_CAUSES for m in moves):
        causes = _PICTURE_CAUSES[moves[0].column]
        return f"Prepare the images of OTHER as those of DATA; possible causes: {causes}."
    lines = list(dict.fromkeys(m.fix for m in moves if m.fix))
    if not lines:
        return ""
    return f"Undo these changes in OTHER: {'; '.join(lines[:6])}.{_gain(evidence, found)}"


def _gain(evidence: Evidence, found: ColumnComparison) -> str:
    """Describe the model's gain once changed units and swapped columns are corrected."""
    mended = evidence.versus.mended
    gain = None if mended is None else mended(evidence.versus.other, found.moves)
    if gain is None or not gain.mended > gain.given:
        return ""
    if gain.numbers:
        return (
            " With units and swapped columns corrected, the model's R^2 is "
            f"{number(gain.mended)} on {plural(gain.n, 'row')} instead of {number(gain.given)}."
        )
    return (
        " With units and swapped columns corrected the model is correct on "
        f"{percent(gain.mended)} of "
        f"{plural(gain.n, 'row')} instead of {percent(gain.given)}."
    )
