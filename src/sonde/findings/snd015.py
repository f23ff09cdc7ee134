"""SND015: inputs that the model knows in another form."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from scipy.stats import binom

from sonde.findings._places import sentence
from sonde.findings._text import number, percent, plural
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Rule, Theme
from sonde.findings.step import Step
from sonde.findings.variants import MISFIT, Tried, VariantEvidence


@final
@dataclass(frozen=True)
class SND015(Rule):
    """How much better the model does on the same inputs, given in another form."""

    level: float = 0.001
    part: float = 0.5

    code: ClassVar[str] = "SND015"
    title: ClassVar[str] = "Inputs that the model knows in another form"
    theme: ClassVar[Theme] = "run"
    why: ClassVar[str] = (
        "Inputs that are scaled, turned or ordered otherwise than in training give wrong answers "
        "without an error."
    )
    fix: ClassVar[str] = "Prepare the inputs in the form named."
    how: ClassVar[str] = (
        "Asked where the model is right far less often than a linear probe of its last layer, or "
        "where the first batch norm does not fit (SND012): up to 128 rows are run again divided "
        "by 255, brought to 0..1, -1..1 or mean 0 and variance 1, inverted, mirrored, turned, with "
        "channels reversed or columns moved, ... Raised where one of them closes half of the gap "
        "to the probe and rows that it mends outnumber rows that it breaks (sign test, 0.1 %, "
        "corrected for the forms tried); without labels, where it takes three quarters of the "
        "first batch norm's misfit away and leaves less than 0.125 nats."
    )
    false_positives: ClassVar[str] = "A form that helps by luck is possible at the stated level."
    plant: ClassVar[str] = "A net for pixels in -1..1 over pixels in 0..255."
    twin: ClassVar[str] = "The same net over pixels in -1..1."

    def check(self, evidence: Evidence) -> Check:
        """Look for a form of the inputs that the model does better on."""
        found = evidence.variants
        if not isinstance(found, VariantEvidence):
            return self.not_applicable("no model was run")
        if not found.tried:
            return self.clear(Figure("gain", 0.0), "nothing gave a reason to try other forms")
        given, *others = found.tried
        if given.right is not None:
            return self._by_answers(evidence, found, given, others)
        return self._by_norm(evidence, found, given, others)

    def _by_answers(
        self, evidence: Evidence, found: VariantEvidence, given: Tried, others: list[Tried]
    ) -> Check:
        assert given.right is not None
        own = float(given.right.double().mean())
        best, gain, p = None, 0.0, 1.0
        for other in others:
            if other.right is None:
                continue
            more = float(other.right.double().mean()) - own
            mended = int((other.right & ~given.right).sum())
            broken = int((given.right & ~other.right).sum())
            chance = min(1.0, len(others) * float(binom.sf(mended - 1, mended + broken, 0.5)))
            if more > gain and chance < self.level:
                best, gain, p = other, more, chance
        figure = Figure(
            "gain", gain, unit="share", null=0.0, p=p, n_rows=len(given.right),
            threshold=self.part * max(0.0, found.probe - own),
        )  # fmt: skip
        if best is None or figure.threshold is None or gain < figure.threshold:
            return self.clear(figure)
        text = (
            f"With its inputs {best.words}, the model is right on {percent(own + gain)} of "
            f"{plural(len(given.right), 'row')}, as they are given on {percent(own)}; a probe of "
            f"its last layer reaches {percent(found.probe)}."
        )
        fix = f"{best.line}: right on {percent(own + gain)} instead of {percent(own)}."
        return self._raised(text, figure, best, fix)

    def _by_norm(
        self, evidence: Evidence, found: VariantEvidence, given: Tried, others: list[Tried]
    ) -> Check:
        known = [t for t in others if not math.isnan(t.misfit)]
        best = min(known, key=lambda t: t.misfit, default=None)
        if best is None or math.isnan(given.misfit):
            return self.clear(Figure("gain", 0.0), "no answer and no norm tells the forms apart")
        figure = Figure(
            "misfit_left", best.misfit, unit="nats", null=0.0, n_rows=found.n_rows,
            threshold=MISFIT, direction="below",
        )  # fmt: skip
        if best.misfit >= min(MISFIT, given.misfit / 4):
            return self.clear(figure)
        text = (
            f"With the inputs {best.words}, what reaches the first norm, {found.norms[0].path}, "
            f"fits what it was trained on ({number(best.misfit)} nats), as they are given it does "
            f"not ({number(given.misfit)} nats; {plural(found.n_rows, 'row')})."
        )
        fix = f"{best.line}: then what reaches {found.norms[0].path} fits its training."
        return self._raised(text, figure, best, fix)

    def _raised(self, text: str, figure: Figure, best: Tried, fix: str) -> Check:
        return self.raised_with(
            "error",
            sentence(text),
            figure,
            effect=1.0 if figure.name == "misfit_left" else min(1.0, figure.value),
            next=Step("scan", scale=best.scale) if best.scale else None,
            fix=fix if best.line else f"Give the inputs {best.words}{fix}",
        )
