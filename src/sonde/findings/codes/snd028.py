"""SND028: texts in another form than in training."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.best_text import best_text
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.texts.text_forms import FIXES
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import chance_of_gain
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND028(Rule):
    """Reduction of the loss if the texts are given in another form."""

    level: float = 0.001
    share: float = 0.05
    nats: float = 0.1

    title: ClassVar[str] = "Texts in another form than in training"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("worse in production", "text form")
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND064", "SND066", "SND067")),
        Explains(("SND026", "SND029", "SND037"), least=0.2),
    )
    why: ClassVar[str] = (
        "Positions or token ids that are off by one, a chat template that is applied twice, or "
        "another case, spacing or encoding, raise the loss of a language model without any error "
        "message."
    )
    fix: ClassVar[str] = "Prepare the texts in the form named."
    how: ClassVar[str] = (
        "Up to 32 texts of one length, cut to 64 tokens, are run again with positions one lower "
        "and one or two higher, with token ids one lower or higher, in reverse order, and with "
        "a start token; up to 32 texts, cut to their median length and 96 tokens, are run again "
        "in another case, with "
        "other spaces, line ends, quotation marks, encodings and normalisations, with repeated "
        "control tokens once, and with the spaces or capitals that the words of the tokenizer's "
        "vocabulary suggest; the loss of a text that loses characters is raised by their ratio. "
        "Raised if one of these forms lowers the mean loss "
        "after the first token by at least 5 % and 0.1 nats, Wilcoxon's signed rank test over "
        "held-out texts has p below 0.1 %, and the new loss is below that of the tokens' "
        "frequencies."
    )
    false_positives: ClassVar[str] = (
        "Few, similar texts. A start token that was left out on purpose is reported too."
    )
    plant: ClassVar[str] = "The shipped language model with its positions moved by one."
    twin: ClassVar[str] = "The unchanged model."

    def check(self, evidence: Evidence) -> Check:
        """Search for a form of the texts that lowers the loss."""
        best = best_text(evidence)
        if best is None:
            return self.not_applicable("the model does not predict a next token, or has few texts")
        words, given, loss = best.words, best.given, best.loss
        own = float(given.mean())
        gain = own - float(loss.mean())
        p = chance_of_gain(-given, -loss)
        figure = Figure(
            "loss_gain", gain, unit="nats", null=0.0, p=p, n_rows=len(loss), n_groups=len(loss),
            threshold=max(self.nats, self.share * own),
        )  # fmt: skip
        lens = evidence.get(measure_lens)
        most = lens.unigram if isinstance(lens, LensEvidence) else math.inf
        if gain < max(self.nats, self.share * own) or not p < self.level or own - gain > most:
            return self.clear(figure)
        text = (
            f"For the texts {words}, the model's loss is {number(own - gain, 3)} nats per "
            f"token, and {number(own, 3)} with unchanged texts ({percent(gain / own)} less; "
            f"{plural(len(loss), 'text')} held out from the choice of this form)."
        )
        line = FIXES.get(words, "")
        sites = [s.schema.key for s in evidence.sites[:1]]
        return self.raised_with(
            "warning",
            sentence(text),
            figure,
            effect=min(1.0, gain / own),
            next=read_command(sites[0]) if sites else None,
            fix=f"{line}: {number(own - gain, 3)} nats per token instead of {number(own, 3)}."
            if line
            else "",
            trial=best.trial,
        )
