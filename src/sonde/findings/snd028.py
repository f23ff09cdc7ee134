"""SND028: texts that a language model knows in another form."""

from dataclasses import dataclass
from typing import ClassVar, final

from scipy.stats import ttest_rel

from sonde.findings._places import read_command, sentence
from sonde.findings._text import number, percent, plural
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Rule, Theme
from sonde.findings.text_variants import TextVariantEvidence


@final
@dataclass(frozen=True)
class SND028(Rule):
    """How much lower the loss is on the same texts, given in another form."""

    level: float = 0.001
    share: float = 0.05
    nats: float = 0.1

    code: ClassVar[str] = "SND028"
    title: ClassVar[str] = "Texts that the model knows in another form"
    theme: ClassVar[Theme] = "run"
    why: ClassVar[str] = (
        "Positions or token numbers that are off by one, a missing token of a start or a turned "
        "order cost a language model part of what it knows, without an error."
    )
    fix: ClassVar[str] = "Prepare the texts in the form named."
    how: ClassVar[str] = (
        "Up to 24 texts of one length, cut to 64 tokens, run again with positions one lower, one "
        "or two higher, token numbers one lower or higher, from the end to the start, and with "
        "the start token before them. Raised where the mean loss after the first token falls by "
        "at least 5 % and 0.1 nats, and a paired t test over texts, corrected for the forms "
        "tried, has p below 0.1 %."
    )
    false_positives: ClassVar[str] = (
        "Few texts of one kind. A start token that was left out on purpose is still raised."
    )
    plant: ClassVar[str] = "The shipped language model with its positions moved by one."
    twin: ClassVar[str] = "The same model as it is."

    def check(self, evidence: Evidence) -> Check:
        """Look for a form that the model does better on."""
        found = evidence.texts
        if not isinstance(found, TextVariantEvidence) or not found.losses:
            return self.not_applicable("the model does not predict a next token, or has few texts")
        own = float(found.given.mean())
        words, loss = min(found.losses.items(), key=lambda pair: float(pair[1].mean()))
        gain = own - float(loss.mean())
        test = ttest_rel(found.given.numpy(), loss.numpy(), alternative="greater")
        p = min(1.0, len(found.losses) * float(test.pvalue))  # type: ignore[union-attr]
        figure = Figure(
            "loss_gain", gain, unit="nats", null=0.0, p=p, n_rows=len(loss), n_groups=len(loss),
            threshold=max(self.nats, self.share * own),
        )  # fmt: skip
        if figure.threshold is None or gain < figure.threshold or not p < self.level:
            return self.clear(figure)
        text = (
            f"Given {words}, the texts cost the model {number(own - gain, 3)} nats per token, as "
            f"they are given {number(own, 3)} ({percent(gain / own)} less; "
            f"{plural(len(loss), 'text')})."
        )
        sites = [s.schema.key for s in evidence.sites[:1]]
        return self.raised_with(
            "warning",
            sentence(text),
            figure,
            effect=min(1.0, gain / own),
            next=read_command(sites[0]) if sites else None,
        )
