"""Requests to forget kinds of text, detected by several layers, with or without gates.

The shipped model of bytes is asked for what it knows of tables of characters and of prose. A score
is learned from the request's own texts alone; code, which is not asked away, also sets the gate's
threshold.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

import sonde
from sonde import InputError, Model
from sonde.data import open_inputs
from sonde.edit import GatedAdapter, RequestDetector, RequestScorer, layer_rows, soft_gate
from sonde.tap import Gate
from sonde_studies._gated_requests import Request, requested
from sonde_studies._kinds_of_text import Kind, kinds_of_text, next_byte_loss
from sonde_studies._separation import area
from sonde_studies.arms import note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

SITES, LATE, DIM, RATE = "blocks", "model.layers.6", 192, 3e-3
SHUT, OPEN = 0.9, 0.25


@dataclass(frozen=True)
class Sizes:
    """Texts per request, per gate and per test; their bytes; training steps."""

    learned: int = 64
    gate: int = 48
    judged: int = 64
    length: int = 200
    views: int = 4
    steps: int = 300
    epochs: int = 6


@final
class ForgetTextsStudy(Study):
    """Requests to forget two kinds of text, sent to the shipped byte model."""

    name = "forget-texts"
    title = (
        "is a request to forget texts told by several layers and an encoder trained by contrast?"
    )
    paper = "gao2025o3"
    fidelity = (
        "score over layers and contrast as published; linear maps of the model's states in place "
        "of an encoder of its own; kinds of text in place of question sets; a gate's "
        "threshold is set on texts of the request and on code"
    )
    data = "sonde:stdlib; Python's tables of characters, scikit-learn's prose; Python's code beside"
    place = "byte-model"
    claims = (
        Claim("layers", "All layers together, with as many times the numbers, tell a request's "
              "unseen texts better than one layer.",
              "AUROC of the score over layers less the mean of single layers', mean of requests",
              arms=("layers", "single layer")),
        Claim("encoder", "Codes trained by contrast tell them better than the states.",
              "difference of AUROC, mean of requests",
              arms=("codes", "states")),
        Claim("gates keep", "After both requests code suffers less behind gates, which are set "
              "on texts of code, than without them.",
              "rise of the loss without gates less that behind them, nats a byte",
              arms=("gates", "no gates")),
        Claim("no erosion", "Behind gates the loss of code rises by less than .05 nats a byte.",
              "0.05 less the rise, nats a byte"),
        Claim("forgotten", "Behind gates, which are set on other texts of the requests and of "
              "code, the requests' unseen texts lose half of what they lose without gates.",
              "rise of the loss behind gates over that without them, less 0.5",
              arms=("gates", "no gates")),
    )  # fmt: skip
    null = Claim("by lot", "Code that is asked away by lot is not told from other code.",
                 "AUROC of the score over layers", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Apply two requests in turn, and test on texts of unseen files."""
        model = sonde.load("sonde:stdlib", device="cpu")
        sizes = Sizes(12, 8, 8, 40, 2, 20, 1) if tiny else Sizes()
        counts = (sizes.learned, sizes.gate, sizes.judged)
        kinds = kinds_of_text(counts, sizes.length, np.random.default_rng(seed))
        code = kinds.pop("code")
        done: list[Request] = []
        told: dict[str, list[float]] = {"layers": [], "single": [], "states": []}
        for name, kind in kinds.items():
            tick(name)
            scorer, areas = _told(model, kind, code.judged, sizes, seed)
            for key, value in areas.items():
                told[key].append(value)
            rule = GatedAdapter(rate=RATE, epochs=sizes.epochs, seed=seed)
            learned = open_inputs(model, kind.learned)
            earlier = [one for one, _ in done]
            adapter = rule.learn(model, LATE, DIM, learned, earlier=earlier, progress=False)
            done.append((adapter, _gate(model, scorer, code.gate, kind.gate)))
        last = [*kinds][-1]
        note_again("no gates", last)
        note_again("gates", last)
        for arm, read in (("no gates", sizes.learned), ("gates", sizes.learned + 2 * sizes.gate)):
            note_for(arm, rows=read)
        widths = [rows.shape[-1] for rows in layer_rows(model, code.judged[:2], SITES)]
        for arm, many in (("layers", sum(widths)), ("single layer", widths[0])):
            note_for(arm, rows=sizes.learned, parameters=many)
        note_for("codes", updates=sizes.steps)
        note_for("states", updates=0)
        tick("by lot")
        lot = Kind(code.learned, [], code.judged[::2])
        by_lot = _told(model, lot, code.judged[1::2], sizes, seed)[1]["layers"]
        asked = [text for kind in kinds.values() for text in kind.judged]
        told_by = {key: float(np.mean(values)) for key, values in told.items()}
        arms = {"before": [], "no gates": [(a, None) for a, _ in done],
                "gates": [(a, g) for a, g in done if g is not None]}  # fmt: skip
        own = {arm: _loss(model, requests, asked) for arm, requests in arms.items()}
        off = {arm: _loss(model, requests, code.judged) for arm, requests in arms.items()}
        return {
            "layers": told_by["layers"] - told_by["single"],
            "encoder": told_by["layers"] - told_by["states"],
            "gates keep": off["no gates"] - off["gates"],
            "no erosion": 0.05 - (off["gates"] - off["before"]),
            "forgotten": (own["gates"] - own["before"]) / (own["no gates"] - own["before"]) - 0.5,
            "by lot": by_lot,
            **{f"AUROC by {key}": value for key, value in told_by.items()},
            "gates that could be set": float(len(arms["gates"])),
            **{f"requests | {arm}": value for arm, value in own.items()},
            **{f"code | {arm}": value for arm, value in off.items()},
        }


def _told(
    model: Model, kind: Kind, others: list[str], sizes: Sizes, seed: int
) -> tuple[RequestScorer, dict[str, float]]:
    """Return a request's scorer, and how well three scores separate its texts from others."""
    own, off = (torch.cat(layer_rows(model, texts, SITES), 1) for texts in (kind.judged, others))
    rule = RequestDetector(views=sizes.views, epochs=sizes.steps, seed=seed)
    scorer = rule.learn(model, kind.learned, SITES)
    states = RequestDetector(width=None).learn(model, kind.learned, SITES)
    single = zip(scorer.by_layer(own).T, scorer.by_layer(off).T, strict=True)
    return scorer, {
        "layers": area(scorer.score(own), scorer.score(off)),
        "single": float(np.mean([area(a, b) for a, b in single])),
        "states": area(states.score(own), states.score(off)),
    }


def _gate(model: Model, scorer: RequestScorer, others: list[str], own: list[str]) -> Gate | None:
    """Return the gate of a request, or None if its texts cannot be separated."""
    off, on = (scorer.score(torch.cat(layer_rows(model, t, SITES), 1)) for t in (others, own))
    try:
        return soft_gate(scorer, off, on, SITES, shut_for=SHUT, open_for=OPEN)
    except InputError:
        return None


def _loss(model: Model, requests: list[Request], texts: list[str]) -> float:
    """Return the mean next-byte loss after some requests, in nats."""
    with requested(model, requests, LATE):
        return next_byte_loss(model, texts)
