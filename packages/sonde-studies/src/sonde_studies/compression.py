"""Test whether information survives lossy compression well enough to be estimated.

Gaussian pairs of known information, mapped into many units by nets that lose nothing; then a net
on digits with noise at its hidden layers.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from sonde.measure import mutual_information
from sonde_studies._layers import layers_of, plain_net, split, trained
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

NATS, LATENTS, UNITS, ROWS, K = (0.0, 1.0, 2.0, 4.0), 2, 30, 1200, 4
NOISE, AT, STEPS = 0.3, (0, 20, 60, 150, 400, 800), 1500


@final
class CompressionStudy(Study):
    """Neighbour estimates in two principal components against estimates in all units.

    *Rotated* units are the latents along random directions with a little noise; *bent* units come
    out of a random tanh layer.
    """

    name = "compression"
    title = "does information survive a lossy compression, so that neighbours can count it?"
    paper = "butakov2024compression"
    fidelity = (
        "principal components in place of a trained autoencoder; the estimator of Kraskov in place "
        "of the weighted one; a dense net in place of a convolutional one"
    )
    data = "synthetic pairs of 0 to 4 nats in 30 units; scikit-learn's digits, noise of .3 rms"
    claims = (
        Claim(
            "two nats",
            "Of 2 nats in rotated units, components and neighbours find all to 0.1.",
            "0.1 less the absolute error, nats",
        ),
        Claim(
            "four nats",
            "Of 4 nats they find all to 0.1.",
            "0.1 less the absolute error, nats",
        ),
        Claim(
            "not without",
            "Neighbours in all 30 units miss more than they do.",
            "difference of absolute errors at 4 nats",
            arms=("components", "all units"),
        ),
        Claim(
            "bent",
            "Of 2 nats in bent units they find all to 0.1.",
            "0.1 less the absolute error, nats",
        ),
        Claim(
            "forgets",
            "The last hidden layer of a net on digits forgets in later steps more than 0.05 nats "
            "of its input.",
            "largest information less that at the end, less 0.05",
            arms=("end of training", "most information"),
        ),
    )
    null = Claim(
        "unrelated",
        "Unrelated latents have no information.",
        "nats, rotated units",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Estimate known information, then follow a net in training."""
        n = 200 if tiny else ROWS
        found: dict[str, float] = {}
        for nats in NATS:
            tick(f"{nats:g} nats")
            for name, bent in (("rotated", False), ("bent", True)):
                x, y = _pair(nats, n, seed, bent)
                close = mutual_information(x, y, estimator="ksg", k=K, components=LATENTS)
                found[f"{name}, components | {nats:g}"] = float(close)
                plain = mutual_information(x, y, estimator="ksg", k=K)
                found[f"{name}, all units | {nats:g}"] = float(plain)
        for name in ("components", "all units"):
            note_for(name, rows=n)
        tick("digits")
        curve = _followed(seed, n, 60 if tiny else STEPS)
        most = max(curve, key=lambda step: curve[step])
        for name, updates in (("end of training", max(curve)), ("most information", most)):
            note_for(name, updates=updates, rows=n)
        return {
            "two nats": 0.1 - abs(found["rotated, components | 2"] - 2.0),
            "four nats": 0.1 - abs(found["rotated, components | 4"] - 4.0),
            "not without": abs(found["rotated, all units | 4"] - 4.0)
            - abs(found["rotated, components | 4"] - 4.0),
            "bent": 0.1 - abs(found["bent, components | 2"] - 2.0),
            "forgets": max(curve.values()) - [*curve.values()][-1] - 0.05,
            "unrelated": found["rotated, components | 0"],
            **found,
            **{f"digits, last layer | step {step}": v for step, v in curve.items()},
        }


def _pair(nats: float, n: int, seed: int, bent: bool) -> tuple[Tensor, Tensor]:
    """Return two sites of 30 units with a given mutual information."""
    draw = torch.Generator().manual_seed(1000 * seed + int(10 * nats))
    rho = math.sqrt(-math.expm1(-2.0 * nats / LATENTS))
    a, b = torch.randn(2, n, LATENTS, generator=draw, dtype=torch.float64)
    b = rho * a + math.sqrt(1.0 - rho**2) * b
    sites: list[Tensor] = []
    for z in (a, b):
        turn = torch.randn(UNITS, LATENTS, generator=draw, dtype=torch.float64)
        x = z @ torch.linalg.qr(turn).Q.T
        if bent:
            x = (x @ torch.randn(UNITS, UNITS, generator=draw, dtype=torch.float64)).tanh()
        sites.append(x + 1e-3 * torch.randn(x.shape, generator=draw, dtype=torch.float64))
    return sites[0], sites[1]


def _followed(seed: int, n: int, steps: int) -> dict[int, float]:
    """Return the digit information in the noisy last hidden layer, by training step."""
    d = split(seed, n)
    at = [s for s in AT if s < steps]
    found: dict[int, float] = {}
    nets = trained(plain_net(seed, (64, 16), nn.Tanh), d.x, d.label, steps, seed, at=at)
    for step, net in zip([*at, steps], nets, strict=True):
        draw = torch.Generator().manual_seed(seed)
        last = layers_of(net, d.x)[-1]
        scale = NOISE * last.square().mean().sqrt()
        noisy = last + scale * torch.randn(last.shape, generator=draw)
        found[step] = float(
            mutual_information(d.x, noisy, estimator="ksg", k=K, components=LATENTS)
        )
    return found
