"""Test whether a net learns single-frequency waves as it groks, only with weight decay.

Addition modulo 23 by two layers and squares: the units that a theory of emerging features calls
local maxima of an energy are waves of one frequency.
"""

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from sonde.measure import GrokkingStages, grokking_stages
from sonde_studies._separation import rank_correlation
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

MODULUS, UNITS, SHARE, RATE, STEPS = 23, 128, 0.55, 5e-3, 4000
DECAYS = (0.0, 0.2)
AT = (0, 10, 30, 100, 300, 600, 1000, 1500, 2000, 2500, 3000, 3500)


@final
class GrokkingStudy(Study):
    """The same net and data with and without weight decay, at thirteen checkpoints."""

    name = "grokking"
    title = "do units become waves of one frequency as a net stops memorising?"
    paper = "tian2025grokking"
    fidelity = (
        "the energy of a unit as published; stages by accuracies (ours); a smaller modulus; full "
        "batches of 55 % of all pairs, squared loss"
    )
    data = "synthetic: all pairs of addition modulo 23"
    claims = (
        Claim(
            "generalises",
            "With weight decay most fresh pairs are right in the end.",
            "accuracy on fresh pairs, less 0.5",
        ),
        Claim(
            "later",
            "That comes at least ten times as late as on the pairs learned from.",
            "powers of ten between the steps, less 1",
            premise="generalises",
        ),
        Claim(
            "labels first",
            "The gradient of the units is aligned with the labels before fresh pairs are right.",
            "powers of ten between the checkpoints where each is at half of its largest value",
            premise="generalises",
        ),
        Claim(
            "with the waves",
            "Accuracy on fresh pairs and the concentration on one frequency rise together.",
            "rank correlation over checkpoints after memorising",
        ),
        Claim(
            "decay",
            "Weight decay makes waves: more of a unit lies in one frequency with it in the end.",
            "difference of concentration",
            arms=("weight decay 0.2", "weight decay 0"),
        ),
        Claim(
            "apart",
            "Units depend on each other less at the end than once pairs are memorised.",
            "fall of the share of covariance off the diagonal",
        ),
    )
    null = Claim(
        "no decay",
        "Without weight decay fresh pairs stay at chance.",
        "accuracy on fresh pairs in the end less that of one answer in 23",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both nets and measure their checkpoints."""
        found: dict[float, GrokkingStages] = {}
        for decay in DECAYS:
            tick(f"weight decay {decay:g}")
            found[decay] = _watched(seed, decay, 60 if tiny else STEPS)
        plain, decayed = found[0.0], found[DECAYS[1]]
        learned = torch.nonzero(decayed.stage > 0).flatten()
        memorised = int(learned[0]) if len(learned) else len(decayed.step) - 1
        after = slice(memorised, None)
        first, general = max(float(decayed.step[memorised]), 1.0), float(decayed)
        late = general if math.isfinite(general) else float(decayed.step[-1])
        figures = {
            f"{name}, decay {decay:g} | step {step}": float(getattr(result, name)[i])
            for decay, result in found.items()
            for name in ("test_accuracy", "alignment", "energy", "concentration", "interaction")
            for i, step in enumerate(result.step.tolist())
            if step in (0, 30, 300, 1000, 2000, 3000, STEPS)
        }
        return {
            "generalises": float(decayed.test_accuracy[-1]) - 0.5,
            "later": math.log10(late / first) - 1.0,
            "labels first": math.log10(
                _half(decayed, decayed.test_accuracy) / _half(decayed, decayed.alignment)
            ),
            "with the waves": rank_correlation(
                decayed.test_accuracy[after], decayed.concentration[after]
            ),
            "decay": float(decayed.concentration[-1] - plain.concentration[-1]),
            "apart": float(decayed.interaction[memorised] - decayed.interaction[-1]),
            "no decay": float(plain.test_accuracy[-1]) - 1.0 / MODULUS,
            "step of memorising | decay": first,
            "step of generalising | decay": late,
            **figures,
        }


def _half(found: GrokkingStages, value: Tensor) -> float:
    """Return the first checkpoint with half of the largest value; step 0 counts as 1."""
    return max(float(found.step[int((value >= value.max() / 2).double().argmax())]), 1.0)


@torch.enable_grad()
def _watched(seed: int, decay: float, steps: int) -> GrokkingStages:
    """Train one net and return the measurements at its checkpoints."""
    m, draw = MODULUS, torch.Generator().manual_seed(seed)
    a, b = torch.cartesian_prod(torch.arange(m), torch.arange(m)).T
    x = torch.cat([torch.eye(m)[a], torch.eye(m)[b]], 1)
    label = (a + b) % m
    goal = functional.one_hot(label, m).float() - 1.0 / m
    learned = torch.rand(len(x), generator=draw) < SHARE
    layers = [
        (torch.randn(n, k, generator=draw) / n**0.5).requires_grad_()
        for n, k in ((2 * m, UNITS), (UNITS, m))
    ]
    note(rows=int(learned.sum()))
    optimiser = torch.optim.AdamW(layers, lr=RATE, weight_decay=decay)
    kept: dict[int, tuple[Tensor, ...]] = {}
    for step in range(steps + 1):
        if step in AT or step == steps:
            kept[step] = tuple(w.detach().clone() for w in layers)
        said = (x[learned] @ layers[0]).square() @ layers[1]
        optimiser.zero_grad()
        (said - goal[learned]).square().mean().backward()
        optimiser.step()
    return grokking_stages({s: (w[0], w[1]) for s, w in kept.items()}, x, label, learned)
