"""SND029: a language model that predicts other tokens than the texts contain."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.evidence.answers.labels import LEAST_ROWS
from sonde.findings.evidence.half_intervals import Z
from sonde.findings.evidence.modules.fresh_weights import untrained_share
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.texts.read_in_a_row import read_in_a_row
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import counted_as, read_command, sentence, too_few
from sonde.findings.words.text import number, plural


@final
@dataclass(frozen=True)
class SND029(Rule):
    """Divergence of the mean prediction from token frequencies, by token id and by rank."""

    nats: float = 0.5
    errors: float = 3.0
    untrained: float = 0.5
    one: float = 0.5

    title: ClassVar[str] = "The model expects other tokens than its texts have"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("other tokenizer",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND026", "SND028", "SND037")),)
    why: ClassVar[str] = (
        "The tokenizer of another model, or a retrained tokenizer, gives tokens other ids: "
        "every text is nonsense to the model, and no error appears."
    )
    fix: ClassVar[str] = (
        "Load the tokenizer that the model was trained with, from the same directory."
    )
    how: ClassVar[str] = (
        "Tested if the next-token loss is above the entropy of the tokens' frequencies by 3 "
        "standard errors. The model's probabilities are averaged over positions; the divergence "
        "of this average from the frequencies is the cost of expecting the wrong tokens. Raised "
        "if the cost is at least 0.5 nats and falls to less than half once both distributions "
        "are sorted: the model then expects an equally uneven distribution, but over other "
        "tokens. Not raised if a single token accounts for half of the cost. Nearly even "
        "predictions, as from random weights, cost as much after sorting; a model half of whose "
        "layers look untrained (SND003) is not judged, nor one that beats the frequencies once it "
        "has read a few of the texts: texts of one template hold few tokens."
    )
    false_positives: ClassVar[str] = "Texts of a language that the model was not trained on."
    plant: ClassVar[str] = "The shipped language model over tokens whose ids are shuffled."
    twin: ClassVar[str] = "The same model over its own tokens."

    def check(self, evidence: Evidence) -> Check:
        """Compare the mean prediction with the token frequencies, by token id and by rank."""
        lens = evidence.get(measure_lens)
        if not isinstance(lens, LensEvidence) or lens.n_words < 2:
            return self.not_applicable("the model does not predict a next token")
        if lens.n_groups < LEAST_ROWS:
            return too_few(self, lens.n_groups, LEAST_ROWS, counted_as(evidence))
        lag = lens.final - lens.unigram
        cost, by_rank = lens.expected - lens.unigram, lens.expected_by_rank - lens.unigram
        figure = Figure(
            "expectation_cost", cost, unit="nats", null=0.0, threshold=self.nats,
            n_rows=lens.n_rows, n_groups=lens.n_groups,
        )  # fmt: skip
        if not math.isfinite(cost) or lag < self.errors * lens.final_se:
            return self.clear(figure, "the loss is not above that of the tokens' frequencies")
        if cost < self.nats or by_rank > cost / 2:
            return self.clear(figure)
        if _of_one_token(lens) > self.one * cost:
            return self.clear(figure, "a single token accounts for most of the cost")
        if untrained_share(evidence) >= self.untrained:
            return self.clear(figure, "the model's layers look untrained")
        row = evidence.get(read_in_a_row)
        if row is not None and row.own <= max(lens.unigram, lens.frequencies):
            return self.clear(
                figure,
                "the texts resemble each other, and the loss is not above that of the tokens' "
                "frequencies once the model has read some of them",
            )
        text = (
            f"The model's loss is {number(lens.final)} nats per token (± "
            f"{number(Z * lens.final_se)}); the tokens' frequencies alone give a loss of "
            f"{number(lens.unigram)}. Its vocabulary seems permuted: it predicts equally frequent "
            "tokens with other ids."
        )
        more = f"Is the tokenizer the model's own? Measured on {plural(lens.n_groups, 'text')}."
        sites = [s.schema.key for s in evidence.sites[:1]]
        return self.raised_with(
            "warning",
            sentence(text, more),
            figure,
            sites=tuple(sites),
            effect=min(1.0, cost / (1 + cost)),
            next=read_command(sites[0]) if sites else None,
        )


def _of_one_token(lens: LensEvidence) -> float:
    """Return the largest cost of predicting a single token too rarely."""
    if lens.texts is None:
        return 0.0
    seen, predicted = (x.double().sum(0) for x in (lens.texts.seen, lens.texts.said))
    share, expected = seen / seen.sum(), (predicted / predicted.sum()).clamp(min=1e-9)
    return float(torch.special.xlogy(share, share / expected).max())
