"""Retrieval from texts eight times as long as the window, by a model trained to recall facts.

A text is a row of sentences of four letters; a fact holds a key and a digit. A question names a
key, and the answer is its digit.
"""

from typing import final

import torch

from sonde import Model
from sonde.compress import AttentionRetrieval
from sonde_studies.arms import passes_of
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.needles import (
    LAYERS,
    QUARTERS,
    WINDOW,
    LongText,
    answers,
    surest,
    trained,
    within,
)

BUDGET, TOP, EACH = 24, 8, 10
CALIBRATION, LONGER, LONGER_EACH = 16, 16, 5


@final
class AttentionRetrievalStudy(Study):
    """Windows by attention, windows alone, the last window, and random sentences."""

    name = "attention-retrieval"
    title = "does attention find a fact in a text eight times as long as the window?"
    paper = "ye2025infiniretri"
    fidelity = (
        "two layers trained on windows of one made language, whose embeddings hold the letter "
        "before; the layer is chosen on texts of two windows, the paper reads the last one"
    )
    data = "simulated: 128 sentences, 24 of them facts of different keys; windows of 64 letters"
    claims = (
        Claim("within", "The model answers within one window.", "accuracy", above=0.9),
        Claim("found", "The fact is kept in more than nine of ten texts, wherever it stands.",
              "share of texts, the worst quarter of places", above=0.9, premise="within"),
        Claim("windows alone",
              "Answers from the kept sentences are right more often than in the window that is "
              "surest, with a third more passes.",
              "accuracy, retrieved less surest window", premise="within",
              arms=("retrieved", "surest window")),
        Claim("last window",
              "They are right more often than from the last window, which takes one pass.",
              "accuracy, retrieved less last window", premise="within",
              arms=("retrieved", "last window")),
        Claim("at random",
              "They are right more often than from as many random sentences, read in one pass.",
              "accuracy, retrieved less random sentences", premise="within",
              arms=("retrieved", "random sentences")),
        Claim("longer", "In texts of sixteen windows nine of ten answers are right.",
              "accuracy", above=0.9, premise="within"),
        Claim("layer", "The layer chosen on texts of two windows keeps the fact more often.",
              "share of texts, chosen layer less the other", premise="within",
              arms=("retrieved", "other layer")),
    )  # fmt: skip
    null = Claim("absent", "Asked for a key that the text lacks, it keeps two facts alike.",
                 "share of texts, the fact that was to be found less another fact")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the model, and ask for facts at every depth."""
        tick("model")
        model = trained(seed, 10 if tiny else None)
        draw = torch.Generator().manual_seed(1000 + seed)
        rules = sorted(
            (AttentionRetrieval(WINDOW, BUDGET, TOP, layer) for layer in range(LAYERS)),
            key=lambda one: _kept(one, model, 2 if tiny else CALIBRATION, seed),
        )
        n = QUARTERS * (1 if tiny else EACH)
        found: dict[str, list[list[float]]] = {}
        for i in range(n):
            tick(f"text {i + 1} of {n}")
            text = LongText.drawn(i % QUARTERS, draw)
            for arm, row in _arms(model, text, rules, draw).items():
                found.setdefault(arm, []).append(row)
        tick("longer texts")
        longer = [
            _read(model, text, rules[-1].retrieve(model, text.whole, text.question).text)
            for i in range(QUARTERS * (1 if tiny else LONGER_EACH))
            for text in [LongText.drawn(i % QUARTERS, draw, LONGER)]
        ]
        every = {
            arm: torch.tensor(rows).double().reshape(-1, QUARTERS, 3) for arm, rows in found.items()
        }
        share = {arm: x.mean((0, 1)).tolist() for arm, x in every.items()}
        quarters, right = every["retrieved"][..., 0].mean(0), share["retrieved"][1]
        return {
            "within": within(model, seed),
            "found": float(quarters.min()),
            "windows alone": right - share["surest window"][1],
            "last window": right - share["last window"][1],
            "at random": right - share["random sentences"][1],
            "longer": sum(row[1] for row in longer) / len(longer),
            "layer": share["retrieved"][0] - share["other layer"][0],
            "absent": share["absent"][0] - share["absent"][2],
            "chosen layer": float(rules[-1].layer),
            **{f"quarter {i + 1} | kept": float(x) for i, x in enumerate(quarters)},
            **{f"{arm} | kept": x[0] for arm, x in share.items() if arm != "surest window"},
            **{f"{arm} | accuracy": x[1] for arm, x in share.items() if arm != "absent"},
        }


def _arms(
    model: Model, text: LongText, rules: list[AttentionRetrieval], draw: torch.Generator
) -> dict[str, list[float]]:
    """Return by arm whether the fact is kept, the answer is right, and another fact is kept."""
    lot = torch.randperm(len(text.sentences), generator=draw)[: BUDGET // 4].sort().values
    asked = {
        "retrieved": (rules[-1], text.question),
        "other layer": (rules[0], text.question),
        "absent": (rules[-1], f"?{text.absent}"),
    }
    kept = dict[str, str]()
    for arm, (rule, question) in asked.items():
        with passes_of(arm, model.module):
            kept[arm] = rule.retrieve(model, text.whole, question).text
    kept |= {
        "last window": text.whole[-(WINDOW - 4) :],
        "random sentences": "".join(text.sentences[i] for i in lot.tolist()),
    }
    found = dict[str, list[float]]()
    for arm, one in kept.items():
        with passes_of(arm, model.module):
            found[arm] = _read(model, text, one)
    with passes_of("surest window", model.module):
        return found | {"surest window": [0.0, float(surest(model, text) == text.fact[2]), 0.0]}


def _read(model: Model, text: LongText, kept: str) -> list[float]:
    """Return whether the fact is kept, the answer is right, and another fact is kept."""
    right = answers(model, [kept + text.question])[0] == text.fact[2]
    return [float(text.fact in kept), float(right), float(text.other in kept)]


def _kept(rule: AttentionRetrieval, model: Model, n: int, seed: int) -> float:
    """Return the share of new texts of two windows in which a rule keeps the fact."""
    draw = torch.Generator().manual_seed(2000 + seed)
    texts = [LongText.drawn(i % QUARTERS, draw, 2) for i in range(n)]
    kept = [text.fact in rule.retrieve(model, text.whole, text.question).text for text in texts]
    return sum(kept) / n
