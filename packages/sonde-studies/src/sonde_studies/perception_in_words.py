"""Garments that a net of pictures names, and questions that a language model answers from names.

In two arms one part is made worse: the pictures show one grey, or the language model loses its last
blocks.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.report import Answer
from sonde_studies._help_pages import language_model
from sonde_studies._pretrained_pictures import SIDE, TINY_SIDE, garment_pictures, lite0
from sonde_studies.arms import note_for
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.recipes.perception_in_words import (
    DIRECT,
    LOT,
    PERCEIVED,
    TEST,
    TOLD,
    perception_in_words,
)
from sonde_studies.study import Claim, Figures, Study, Tick

ROWS, MOST, BLOCKS = 400, 2_000, 10
WORDS = (
    "T-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
    "bag", "ankle boot",
)  # fmt: skip
SHOES = {"sandal", "sneaker", "ankle boot"}
QUESTIONS = {
    "It is sold in the department for": lambda w: (
        "shoes" if w in SHOES else "bags" if w == "bag" else "clothes"
    ),
    "It has a pair of": lambda w: (
        "soles" if w in SHOES else {"bag": "handles", "pair of trousers": "legs"}.get(w, "sleeves")
    ),
}
"""Questions with their true answers for each word."""
SHARE = "accuracy"


@final
class PerceptionInWordsStudy(Study):
    """400 pictures of garments in a seed, each with one of two questions."""

    name = "perception-in-words"
    title = "does it show whether perception or reasoning errs, where words stand between them?"
    paper = "qiao2024prism"
    fidelity = (
        "one word for a picture in place of a written description: a head on the states of a net "
        "of pictures chooses it; two questions"
    )
    data = "EfficientNet-lite0, garments of Fashion-MNIST, and SmolLM2-135M-Instruct"
    place = "smollm2"
    seconds = 60.0
    claims = (
        Claim("perceiver", "Where pictures show one grey, more answers are lost by perception than "
              "by reasoning.", "share of rows, difference", arms=("true words", "perceived words")),
        Claim("reasoner", "Where pictures are as they are, more are lost by reasoning.",
              "share of rows, difference", arms=("true words", "perceived words")),
        Claim("words", "From words that were perceived the reasoner is right more often than from "
              "words of other pictures.", f"{SHARE}, difference",
              arms=("perceived words", "words by lot")),
        Claim("through words", "It is right as often as a head on the states for each question, "
              "less 5 points.", f"{SHARE}, difference, and 0.05",
              arms=("perceived words", "no words")),
        Claim("size", "From the same words the whole reasoner is right more often than without "
              "its last blocks, by half.", f"{SHARE} from true words, difference, less 0.5",
              arms=("true words", "without blocks")),
    )  # fmt: skip
    null = Claim("by lot", "Names that are dealt to pictures by lot are not perceived in others.",
                 "share named, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Ask about garments as they are, of one grey, and with a reasoner that lost blocks."""
        reasoner, n = language_model(self.place, tiny), 120 if tiny else ROWS
        side = TINY_SIDE if tiny else SIDE
        every, kind = garment_pictures(2 * n if tiny else MOST, side, tiny)
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(kind), generator=draw)[:n]
        x, kind = every[chosen], kind[chosen]
        net = lite0(tiny)
        perceiver = Model(nn.Sequential(net.stem, net.blocks, net.last, net.pool).eval())
        found: dict[str, Answer] = {}
        for arm, (pictures, reader) in {
            "as they are": (x, reasoner),
            "one grey": (of_one_grey(x), reasoner),
            "without blocks": (x, without_last_blocks(reasoner, 1 if tiny else BLOCKS)),
        }.items():
            tick(arm)
            rows = asked(pictures, kind, Random(seed))
            found[arm] = perception_in_words(
                perceiver, reader, rows, input_column="x", seed=seed, progress=False,
                sentence="This is a picture of a {}.",
            )  # fmt: skip
        fitted = n - round(TEST * n)
        for arm in (PERCEIVED, TOLD, LOT, DIRECT, "without blocks"):
            note_for(arm, rows=fitted)
        accuracy = {
            arm: {str(row["from"]): float(row["accuracy"]) for row in answer.rows}  # pyright: ignore
            for arm, answer in found.items()
        }
        own = accuracy["as they are"]
        tick("by lot")
        with torch.no_grad():
            states = torch.cat([perceiver.module(part) for part in x.split(50)])
        lost = {
            arm: {
                part: float(answer.facts[f"lost by {part}"]) for part in ("perception", "reasoning")
            }
            for arm, answer in found.items()
        }
        as_they_are, grey = lost["as they are"], lost["one grey"]
        planted = {"one grey": "perception", "without blocks": "reasoning"}
        return {
            "perceiver": grey["perception"] - grey["reasoning"],
            "reasoner": as_they_are["reasoning"] - as_they_are["perception"],
            "words": own[PERCEIVED] - own[LOT],
            "through words": own[PERCEIVED] - own[DIRECT] + 0.05,
            "size": own[TOLD] - accuracy["without blocks"][TOLD] - 0.5,
            "by lot": named_by_lot(states[:fitted], states[fitted:], seed) - 1 / len(WORDS),
            **{f"verdict names it | {a}": float(found[a].verdict == w) for a, w in planted.items()},
            **{f"{arm} | {k}": v for arm, row in accuracy.items() for k, v in row.items()},
        }


def asked(x: Tensor, kind: Tensor, source: Random) -> list[dict[str, Any]]:
    """Return a row for each picture, with its word, a random question and the true answer."""
    rows: list[dict[str, Any]] = []
    for picture, own in zip(x, kind.tolist(), strict=True):
        question = source.choice(sorted(QUESTIONS))
        answer = QUESTIONS[question](WORDS[own])
        rows.append({"x": picture, "word": WORDS[own], "question": question, "label": answer})
    return rows


def of_one_grey(x: Tensor) -> Tensor:
    """Return pictures that show nothing but their mean."""
    return x.mean((2, 3), keepdim=True).expand_as(x)


def without_last_blocks(reasoner: Model, n: int) -> Model:
    """Return a language model without its last ``n`` blocks."""
    module: Any = deepcopy(reasoner.module)
    parent = module.get_submodule("model" if hasattr(module, "model") else "transformer")
    name = "layers" if hasattr(parent, "layers") else "h"
    setattr(parent, name, getattr(parent, name)[:-n])
    return replace(reasoner, module=module)


def named_by_lot(fit: Tensor, judged: Tensor, seed: int) -> float:
    """Return how often a head names the words that were dealt to other states by lot.

    Parameters
    ----------
    fit, judged : Tensor
        States of the pictures that are learned and of those that judge. Equal states have the same
        word: a picture among both is known.
    seed : int
    """
    centre, spread = fit.mean(0), fit.std(0).clamp(min=1e-12)
    fit, judged = ((x - centre) / spread for x in (fit, judged))
    lots: Sequence[Any] = [labels_by_lot(x, len(WORDS), seed).numpy() for x in (fit, judged)]
    head = linear_head().fit(fit.double().numpy(), lots[0])
    return float(head.score(judged.double().numpy(), lots[1]))
