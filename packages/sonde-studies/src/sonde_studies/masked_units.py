"""Prediction of hidden parts of a signal: their codes, or the signal itself.

Simulated: eight channels mix three sources; where a source is strong says which state it is in.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import VectorQuantizer
from sonde.train import MaskedFeatures
from sonde_studies._rhythm_signals import CHANNELS, KINDS, PATCHES, SAMPLES, rhythm_signals
from sonde_studies.arms import note_for, part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

DIM, CODES, ROWS, LABELLED, HELD = 32, 48, 1_600, 80, 800
STEPS, TINY = 500, 4
Arms = dict[str, float]


class Mixing(nn.Module):
    """Embeddings of places, and two layers of attention over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(PATCHES, DIM))
        layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Return states of all patches."""
        return self.layers(patches + self.place)


class Encoder(nn.Module):
    """Signals to states, through attention over their patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixing = nn.Linear(CHANNELS * SAMPLES, DIM), Mixing()

    def forward(self, x: Tensor) -> Tensor:
        """Return one state for each signal."""
        return self.mixing(self.embed(x)).mean(1)


@final
class MaskedUnitsStudy(Study):
    """An encoder trained on codes of hidden patches, on the patches themselves, or untrained."""

    name = "masked-units"
    title = "do codes of hidden parts teach more than the signal itself?"
    paper = "zheng2024duin"
    fidelity = "codes of patches by a quantiser of the raw signal, not of a trained codec"
    data = "simulated: 1,600 signals to learn from, 80 of them with a label; 800 to judge"
    claims = (
        Claim("codes", "Foretelling codes teaches more than foretelling the signal.",
              "accuracy of a linear probe, codes (a head with a tenth more parameters) less "
              "signal",
              arms=("codes", "signal")),
        Claim("taught", "It teaches something: states say more than those of an untrained net.",
              "accuracy of a linear probe, codes less untrained",
              arms=("codes", "untrained")),
        Claim("used", "More than half of the codes are in use.",
              "perplexity of the codes as a share of their number, less 0.5"),
    )  # fmt: skip
    null = Claim("lots", "Kinds by lot are not told of other signals.",
                 "accuracy of a linear probe, codes, less that of chance")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder with each target, and probe it."""
        n = 60 if tiny else ROWS
        x, kind = rhythm_signals(n + (60 if tiny else HELD), seed)
        tick("codes")
        codes, perplexity = _codes(x[:n], seed)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))
        targets = {
            "codes": codes,
            "signal": x[:n],
            "untrained": None,
            "codes of others": codes[order],
        }
        found, encoders = Arms(), dict[str, Encoder]()
        for arm, target in targets.items():
            tick(arm)
            note_for("untrained", updates=0)
            encoder = drawn(Encoder, seed)
            if target is not None:
                _learn(encoder, x[:n], target, seed, TINY if tiny else STEPS)
            encoders[arm] = encoder.eval()
            with part("probe"):
                found[arm] = _probed(encoder, x, kind, n, seed)
        tick("kinds by lot")
        return {
            "codes": found["codes"] - found["signal"],
            "taught": found["codes"] - found["untrained"],
            "used": perplexity / CODES - 0.5,
            "lots": by_lot(encoders["codes"], x, n, seed),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


def by_lot(encoder: Encoder, x: Tensor, n: int, seed: int) -> float:
    """Return the accuracy of a probe of kinds by lot, less that of chance."""
    return _probed(encoder, x, labels_by_lot(x, KINDS, seed), n, seed) - 1 / KINDS


def _codes(x: Tensor, seed: int) -> tuple[Tensor, float]:
    """Return the code of each patch, and the perplexity of the codes."""
    quantiser = VectorQuantizer(x.shape[2], CODES, decay=0.9, seed=seed).train()
    with torch.no_grad():
        for _ in range(12):
            quantiser(x)
        codes = quantiser.eval().encode(x).reshape(x.shape[:2])
    return codes, quantiser.usage(x)["perplexity"]


def _learn(encoder: Encoder, x: Tensor, target: Tensor, seed: int, steps: int) -> None:
    kind, width = ("codes", CODES) if target.ndim == 2 else ("pixels", x.shape[2])
    term = MaskedFeatures(
        kind,
        "block",
        rebuilder=encoder.mixing,
        width=width,
        seed=seed,  # pyright: ignore
    )
    term(encoder.embed(x[:2]), target[:2])  # makes what it learns itself
    weights = [*dict.fromkeys([*encoder.parameters(), *term.parameters()])]
    minimise(
        lambda rows: term(encoder.embed(x[rows]), target[rows]),
        weights, len(x), steps=steps, seed=seed,
    )  # fmt: skip


def _probed(encoder: Encoder, x: Tensor, kind: Tensor, n: int, seed: int) -> float:
    """Return the accuracy of a linear probe with few labels, on separate signals."""
    with torch.no_grad():
        states = torch.cat([encoder(part) for part in x.split(400)])
    states = (states - states[:n].mean(0)) / states[:n].std(0).clamp(min=1e-6)
    head, few = drawn(lambda: nn.Linear(DIM, KINDS), seed), min(LABELLED, n)

    def loss(rows: Tensor) -> Tensor:
        weight = head.weight.square().sum()
        return cross_entropy(head(states[rows]), kind[rows]) + 0.01 * weight

    minimise(loss, head.parameters(), few, steps=300, seed=seed, rate=1e-2)
    return accuracy(head, states[n:], kind[n:])
