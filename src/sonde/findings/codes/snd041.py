"""SND041: inputs that occur more than once."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.inputs.unusual_rows import Copies, copies
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND041(Rule):
    """Fraction of inputs that are further copies of another input."""

    warning: float = 0.01

    title: ClassVar[str] = "Duplicate inputs"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shared rows", "duplicates")
    breaks: ClassVar[Breaks] = "nothing"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND042", "SND044"), least=0.01),)
    why: ClassVar[str] = (
        "Copies count twice in every statistic, and a random split puts some of them on both sides."
    )
    fix: ClassVar[str] = (
        "Drop the copies (in pandas: frame.drop_duplicates()), and split into training and test "
        "set after that."
    )
    how: ClassVar[str] = (
        "1 - distinct / all, over the 16-byte content hashes of all inputs; chunks of one text "
        "count as one input. Any copy is a note; 1 % of copies, or equal content with different "
        "labels, is a warning."
    )
    false_positives: ClassVar[str] = "Short or categorical inputs, which repeat by their nature."
    plant: ClassVar[str] = "2 % of the rows are copied."
    twin: ClassVar[str] = "The same rows without copies."

    def check(self, evidence: Evidence) -> Check:
        """Count the inputs with equal content."""
        if not evidence.sites:
            return self.withheld("no row can be read")
        duplicates = copies(evidence.data)
        share = duplicates.n_extra / max(duplicates.n, 1)
        figure = Figure(
            "duplicate_share", share, unit="share", threshold=self.warning, n_rows=duplicates.n
        )
        if duplicates.n_extra == 0:
            return self.clear(
                figure, "only the part that was read was compared" if self._part(evidence) else ""
            )
        severe = share >= self.warning or bool(duplicates.contradicting)
        split = set(duplicates.contradicting)
        order = [
            *duplicates.contradicting,
            *(i for i in range(len(duplicates.sets)) if i not in split),
        ]
        sets = [duplicates.sets[i] for i in order]
        return self.raised_with(
            "warning" if severe else "note",
            self._sentence(duplicates, share),
            figure,
            examples=tuple(i for s in sets for i in s),
            figures=tuple(float(len(s)) for s in sets for _ in s),
            partners=tuple(s[0] if i != s[0] else s[-1] for s in sets for i in s),
            effect=min(1.0, share),
            next=rows_command(self.code),
        )

    @staticmethod
    def _part(evidence: Evidence) -> bool:
        return evidence.data.limited

    def _sentence(self, found: Copies, share: float) -> str:
        verb = (
            "is a copy of an earlier input"
            if found.n_extra == 1
            else "are copies of earlier inputs"
        )
        parts = [f"{found.n_extra:,} of {plural(found.n, 'input')} ({percent(share)}) {verb}."]
        if found.contradicting:
            many = len(found.contradicting)
            verb = "has" if many == 1 else "have"
            parts.append(f"{plural(many, 'input')} {verb} copies with different labels.")
        if found.n_blank > 1:
            parts.append(f"{plural(found.n_blank, 'input is', 'inputs are')} empty.")
        most = len(found.sets[0])
        if most > 2:
            parts.append(f"The most frequent input occurs {most:,} times.")
        return " ".join(parts)
