"""Test whether maps of early layers depend on the class, or only after a training step."""

from statistics import fmean
from typing import final

import torch
from torch import Tensor

from sonde.explain import ClassSensitivity, MetaSaliency, NormGrad, combined, upsampled
from sonde_studies._blocks import block_cnn, block_digits, trained
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

FIT, NEW, STEPS, STEP = 1200, 200, 60, 0.3
EARLY, MIDDLE, LATE = "1", "2", "4"
SITES = (EARLY, MIDDLE, LATE)
SIZE = (16, 8)


@final
class NormGradStudy(Study):
    """NormGrad of a virtual 1 x 1 convolution at three layers of a small convolutional net.

    ``mass`` is the share of a map inside the digit's block; a half by chance.
    """

    name = "normgrad"
    title = "do maps of where a layer would learn depend on the class and find the digit?"
    paper = "rebuffi2020normgrad"
    fidelity = (
        "reconstructed: the original steps on a network's weights, here on those of a layer that "
        "does nothing; VGG and ResNet are a net of two convolutions here"
    )
    data = "BlockDigits: a digit above or below a framed diagonal"
    claims = (
        Claim(
            "early maps are alike",
            "Maps of the first layer for the likeliest and the least likely class correlate by .5.",
            "correlation",
            above=0.5,
        ),
        Claim(
            "late over early",
            "Maps of the last layer correlate less than those of the first.",
            "difference of correlations",
            arms=("last layer", "first layer"),
        ),
        Claim(
            "a step lowers it",
            "After a step of learning the maps of the last layer correlate less.",
            "difference of correlations",
            arms=("last layer, after a step", "last layer"),
        ),
        Claim(
            "product over last",
            "The product over layers has more mass in the digit's block than the last layer.",
            "difference of shares",
            arms=("product over layers", "last layer"),
        ),
    )
    null = Claim(
        "null",
        "Maps have half of their mass in the block of another picture's digit.",
        "share, last layer",
        above=0.5,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net and compute its maps."""
        every = block_digits(seed)
        fit, new = every.part(0, FIT), every.part(FIT, FIT + (20 if tiny else NEW))
        tick("training")
        net = trained(block_cnn(), fit.x, fit.label, seed, 4 if tiny else STEPS)
        right = accuracy(net, new.x, new.label)
        tick("maps")
        alike = ClassSensitivity()
        methods = {"plain": NormGrad(), "after a step": MetaSaliency(step=STEP)}
        by = {
            (how, site): alike.judge(net, new.x, method, kind="log_prob", site=site).value
            for how, method in methods.items()
            for site in SITES
        }
        maps = [NormGrad().explain(net, new.x, site=site) for site in SITES]
        mass = {s: _mass(upsampled(m, SIZE), new.signal) for s, m in zip(SITES, maps, strict=True)}
        product = _mass(combined(maps, SIZE), new.signal)
        for name in ("first layer", "last layer", "product over layers"):
            note_for(name, rows=len(new.x), updates=0)
        note_for("last layer, after a step", rows=len(new.x), updates=1)
        early, late = (float(torch.as_tensor(by["plain", site])) for site in (EARLY, LATE))
        stepped = float(torch.as_tensor(by["after a step", LATE]))
        return {
            "early maps are alike": early,
            "late over early": early - late,
            "a step lowers it": late - stepped,
            "product over last": product - mass[LATE],
            "null": _mass(upsampled(maps[-1], SIZE), new.signal.roll(1, 0)),
            "accuracy": right,
            "mass, product": product,
            "mass, mean of layers": fmean(mass.values()),
            **{f"mass | layer {site}": value for site, value in mass.items()},
            **{f"{how} | layer {s}": float(torch.as_tensor(v)) for (how, s), v in by.items()},
        }


def _mass(maps: Tensor, signal: Tensor) -> float:
    inside = (maps * signal).flatten(1).sum(1) / maps.flatten(1).sum(1).clamp(min=1e-30)
    return float(inside.mean())
