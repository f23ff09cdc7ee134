"""Prediction of hidden parts of a signal: their codes, or the signal itself.

Simulated: eight channels mix three sources; where a source is strong says which state it is in.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import VectorQuantizer
from sonde.train import MaskedFeatures
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

CHANNELS, SOURCES, PATCHES, SAMPLES, KINDS = 8, 3, 16, 4, 4
DIM, CODES, ROWS, LABELLED, HELD = 32, 48, 1_600, 80, 800
STEPS, TINY = 500, 4
Arms = dict[str, float]


class Encoder(nn.Module):
    """Patches of all channels to states (row patch dim), through two layers of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS * SAMPLES, DIM)
        self.place = nn.Parameter(0.02 * torch.randn(PATCHES, DIM))
        layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)
        self.mixing = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def tokens(self, x: Tensor) -> Tensor:
        """Return embedded patches, before attention."""
        return self.embed(x)

    def mixed(self, tokens: Tensor) -> Tensor:
        """Return states of patches after attention."""
        return self.mixing(tokens + self.place)

    def forward(self, x: Tensor) -> Tensor:
        """Return one state for each signal."""
        return self.mixed(self.tokens(x)).mean(1)


class Mixing(nn.Module):
    """The second part of an encoder, as a module over tokens."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """Return states of all patches."""
        return self.encoder.mixed(tokens)


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
              "accuracy of a linear probe, codes less signal"),
        Claim("taught", "It teaches something: states say more than those of an untrained net.",
              "accuracy of a linear probe, codes less untrained"),
        Claim("used", "More than half of the codes are in use.",
              "perplexity of the codes over their number, less 0.5"),
    )  # fmt: skip
    null = Claim("shuffled", "Codes of other signals in one order teach as much as in another.",
                 "accuracy of a linear probe, difference of two orders")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder with each target, and probe it."""
        n = 60 if tiny else ROWS
        x, kind = _signals(n + (60 if tiny else HELD), seed)
        tick("codes")
        codes, perplexity = _codes(x[:n], seed)
        orders = [
            torch.randperm(n, generator=torch.Generator().manual_seed(seed + i)) for i in (1, 2)
        ]
        targets = {
            "codes": codes,
            "signal": x[:n],
            "untrained": None,
            "one order": codes[orders[0]],
            "another order": codes[orders[1]],
        }
        found = Arms()
        for arm, target in targets.items():
            tick(arm)
            encoder = drawn(Encoder, seed)
            if target is not None:
                _learn(encoder, x[:n], target, seed, TINY if tiny else STEPS)
            found[arm] = _probed(encoder.eval(), x, kind, n, seed)
        return {
            "codes": found["codes"] - found["signal"],
            "taught": found["codes"] - found["untrained"],
            "used": perplexity / CODES - 0.5,
            "shuffled": found["one order"] - found["another order"],
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


def _signals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return signals (row, patch, channel x sample) and the class of each.

    A kind is an order of three rhythms over the patches; sources have phases of their own, channels
    are a fixed mixture of the sources, and noise.
    """
    fixed = torch.Generator().manual_seed(0)
    mixture = torch.randn(SOURCES, CHANNELS, generator=fixed)
    rhythm = torch.tensor([0.35, 0.8, 1.6])
    orders = torch.stack([torch.randint(SOURCES, (PATCHES // 4,), generator=fixed)
                          for _ in range(KINDS)])  # fmt: skip
    draw = torch.Generator().manual_seed(seed + 1)
    kind = torch.randint(KINDS, (n,), generator=draw)
    strong = orders[kind].repeat_interleave(4, 1).repeat_interleave(SAMPLES, 1)
    time = torch.arange(PATCHES * SAMPLES) + 20.0 * torch.rand(n, 1, generator=draw)
    phase = 6.3 * torch.rand(n, SOURCES, 1, generator=draw)
    waves = torch.sin(rhythm[:, None] * time[:, None] + phase)
    amplitude = 0.3 + (strong[:, None] == torch.arange(SOURCES)[:, None]).float()
    heard = torch.einsum("nst,sc->nct", waves * amplitude, mixture)
    heard = heard + 0.8 * torch.randn(heard.shape, generator=draw)
    patches = heard.reshape(n, CHANNELS, PATCHES, SAMPLES).transpose(1, 2)
    return patches.reshape(n, PATCHES, CHANNELS * SAMPLES), kind


def _codes(x: Tensor, seed: int) -> tuple[Tensor, float]:
    """Return the code of each patch, and the perplexity of the codes."""
    quantiser = VectorQuantizer(x.shape[2], CODES, decay=0.9, seed=seed).train()
    with torch.no_grad():
        for _ in range(12):
            quantiser(x)
        codes = quantiser.eval().encode(x).reshape(x.shape[:2])
    share = torch.bincount(codes.flatten(), minlength=CODES).double() / codes.numel()
    return codes, float(torch.special.entr(share).sum().exp())


def _learn(encoder: Encoder, x: Tensor, target: Tensor, seed: int, steps: int) -> None:
    kind, width = ("codes", CODES) if target.ndim == 2 else ("pixels", x.shape[2])
    term = MaskedFeatures(
        kind,
        "block",
        rebuilder=Mixing(encoder),
        width=width,
        seed=seed,  # pyright: ignore
    )
    term(encoder.tokens(x[:2]), target[:2])  # makes what it learns itself
    weights = [*dict.fromkeys([*encoder.parameters(), *term.parameters()])]
    minimise(
        lambda rows: term(encoder.tokens(x[rows]), target[rows]),
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
    with torch.no_grad():
        return float((head(states[n:]).argmax(1) == kind[n:]).double().mean())
