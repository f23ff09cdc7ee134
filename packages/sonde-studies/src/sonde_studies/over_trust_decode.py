"""Test whether attention columns precede repetition, and whether a penalty prevents it.

A toy: greedy texts of a byte model; half of them repeat more than half of what they write. What
came out (20 seeds): where nothing is repeated yet, no column says which will (AUROC .49, of old
ones .52); where it has begun, old columns are higher (.65). The highest of all is lower there
(.31): by means of logarithms it is one of the youngest, at which one or two bytes look. Searches
that pay for columns repeat less, .36 of 8-grams where plain beam search has .40, for 0.08 nats a
byte; with the paper's products .05, for 0.7, which makes the text as unlikely as what people write.
"""

from statistics import fmean
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import sonde
from sonde.edit import OverTrustDecode
from sonde_studies._repetition import PRODUCT, column_scores, repeated
from sonde_studies._separation import area
from sonde_studies._written import code, generated, likelihood, pieces
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

TEXTS, GIVEN, BEGUN, NEW = 192, 32, 32, 96
"""How many are watched; bytes of the prompt, of the window, and written in all."""
LOOPS, OLD = 0.5, 8
SEARCHED, WRITTEN = 20, 48
BEAMS: dict[str, Any] = {"beams": 2, "candidates": 3}
ARMS: dict[str, dict[str, Any]] = {
    "beam search": {"custom_generate": OverTrustDecode(strength=0.0, retries=0, **BEAMS)},
    "default": {"custom_generate": OverTrustDecode(**BEAMS)},
    "product": {"custom_generate": OverTrustDecode(PRODUCT, **BEAMS)},
    "repetition penalty 1.2": {"num_beams": 2, "repetition_penalty": 1.2},
}
REPEATED = "share of repeated 8-grams without less with"


@final
class OverTrustDecodeStudy(Study):
    """Greedy texts of the shipped byte model after files outside its training data."""

    name = "over-trust-decode"
    title = "do columns of attention come before repetition, and does paying for them prevent it?"
    paper = "huang2024opera"
    fidelity = (
        "of another kind: code by a byte model for captions by large models, repetition for "
        "hallucination, which the paper says columns bring about; scores are means of logarithms "
        "by default, sums are the paper's products; 2 beams of 3 candidates; "
        "nothing was chosen but the number of searches, from 8 to 20 after a first look"
    )
    data = f"{TEXTS} beginnings of {GIVEN} bytes from files that the model never saw"
    place = "byte-model"
    claims = (
        Claim(
            "before",
            "Where nothing is repeated yet, the highest column tells which texts will repeat more "
            "than half.",
            "AUROC",
            above=0.5,
        ),
        Claim(
            "along",
            "Of all texts, those that repeat more than half have the higher columns that at least "
            f"{OLD} bytes look back at.",
            "AUROC",
            above=0.5,
        ),
        Claim(
            "default",
            "Paying and taking back lower repetition, at the defaults.",
            REPEATED,
            arms=("default", "beam search"),
        ),
        Claim(
            "product",
            "They do, with the paper's products.",
            REPEATED,
            arms=("product", "beam search"),
        ),
        Claim(
            "cost",
            "With products the text stays as likely, to 0.1 nats a byte.",
            "log-likelihood a byte with less without, and 0.1",
            arms=("product", "beam search"),
        ),
    )
    null = Claim(
        "halves",
        "Of texts that repeat, one random half has no higher columns than the other.",
        "AUROC",
        above=0.5,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Decode greedily, measure the columns of the beginnings, and decode in several ways."""
        model = sonde.load("sonde:stdlib")
        draw = np.random.default_rng(seed)
        texts, new, searched = (16, 48, 1) if tiny else (TEXTS, NEW, SEARCHED)
        written = 12 if tiny else WRITTEN
        prompts = torch.tensor(pieces(code(), texts, GIVEN, draw))
        tick("greedy texts")
        ids = torch.cat([generated(model.module, some, new) for some in prompts.split(64)])
        begun, loop = ids[:, : GIVEN + BEGUN], repeated(ids[:, GIVEN + BEGUN :]) > LOOPS
        clean = repeated(begun[:, GIVEN:]) == 0
        score = column_scores(model.module, begun, GIVEN, OLD)
        half = torch.from_numpy(draw.permutation(int(loop.sum())) % 2 == 0)
        arms: dict[str, Tensor] = {}
        counted = model.module.register_forward_hook(lambda *_: note(passes=1))
        for name, how in ARMS.items():
            tick(name)
            arms[name] = generated(model.module, prompts[:searched], written, **how)
        counted.remove()
        share = {name: fmean(repeated(x[:, GIVEN:]).tolist()) for name, x in arms.items()}
        likely = {
            name: float(likelihood(model.module, x, GIVEN).mean()) for name, x in arms.items()
        }
        return {
            "before": _told(score["highest"][clean], loop[clean]),
            "along": _told(score["highest old"], loop),
            "default": share["beam search"] - share["default"],
            "product": share["beam search"] - share["product"],
            "cost": likely["product"] - likely["beam search"] + 0.1,
            "halves": _told(score["highest"][loop], half),
            "share of texts without a repeat in the window": float(clean.double().mean()),
            "share of texts that repeat more than half": float(loop.double().mean()),
            **{
                f"{name} | {of}": _told(value[rows], loop[rows])
                for name, value in score.items()
                for of, rows in (("nothing repeated yet", clean), ("all texts", slice(None)))
            },
            **{f"{name} | repeated": value for name, value in share.items()},
            **{f"{name} | nats a byte": -value for name, value in likely.items()},
        }


def _told(score: Float[Tensor, "text"], label: Tensor) -> float:
    """Return the AUROC of a score, or 0.5 if all texts have one label."""
    if bool(label.all()) or not bool(label.any()):
        return 0.5
    return area(score[~label], score[label])
