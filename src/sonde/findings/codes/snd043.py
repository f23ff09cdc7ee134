"""SND043: inputs that were truncated."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.inputs.extreme_class import OneClass, largest_class
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import scan_command, sentence
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND043(Rule):
    """Fraction of examples truncated at the context or at ``--max-length``, and of tokens lost."""

    examples: float = 0.05
    tokens: float = 0.2

    title: ClassVar[str] = "Truncated inputs"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("markup",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "The model never saw the text that was cut off, so these states describe shortened inputs."
    )
    fix: ClassVar[str] = (
        "If the rest of the texts matters, cut them into pieces (--long chunk) or raise "
        "--max-length."
    )
    how: ClassVar[str] = (
        "The number of examples cut at the model's context (or at --max-length if that is "
        "less), and the fraction of tokens lost. Any cut example is a note; 5 % of the "
        "examples or 20 % of the tokens are a warning."
    )
    plant: ClassVar[str] = "Texts three times as long as the context."
    twin: ClassVar[str] = "Texts exactly as long as the context."

    def check(self, evidence: Evidence) -> Check:
        """Compare the counts of truncated examples and lost tokens with their limits."""
        data = evidence.data
        if data.n_tokens == 0:
            return self.not_applicable("the inputs have no tokens")
        share = data.n_truncated / max(data.n, 1)
        lost = data.n_tokens_cut / max(data.n_tokens + data.n_tokens_cut, 1)
        figure = Figure(
            "truncated_share", share, unit="share", threshold=self.examples, n_rows=data.n
        )
        if data.n_truncated == 0:
            return self.clear(figure)
        severe = share >= self.examples or lost >= self.tokens
        text = (
            f"{data.n_truncated:,} of {plural(data.n, 'example')} ({percent(share, 3)}) were cut "
            f"at the context or --max-length; {percent(lost)} of all tokens were lost."
        )
        return self.raised_with(
            "warning" if severe else "note",
            sentence(text, "" if (one := _most_cut(evidence)) is None else one.said),
            figure,
            classes=() if one is None else (one.name,),
            effect=max(share, lost),
            next=scan_command(long="chunk"),
        )


def _most_cut(evidence: Evidence) -> OneClass | None:
    """Return the class whose texts are truncated most often, or None if classes do not differ."""
    shared = shared_rows(evidence)
    cut, order = shared.column("truncated"), shared.order
    if cut is None or order is None or not len(order):
        return None
    return largest_class(evidence.data, order.tolist(), (cut.flatten() > 0).double().numpy())
