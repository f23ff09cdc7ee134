"""Training that begins small: a net grown in width, and one that visits a small net on its way.

Digits, equal products for all arms; the loss on rows that trained nothing.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import Resize
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, SMALL, RATE = 1_000, 240, 8, 48, 1e-3


@final
class GrowModelsStudy(Study):
    """A perceptron of 96 units from scratch, grown from 48, and by a V-cycle."""

    name = "grow-models"
    title = "does a training that begins small reach a lower loss with as many products?"
    paper = "zou2024multilevel"
    fidelity = "perceptrons in place of transformers; optimiser states begin anew at each change"
    data = "digits: 1,000 to train on, 797 to judge; a half or a third of the products in the small"
    claims = (
        Claim("grown", "A net grown from a small one has a lower loss than one from scratch.",
              "nats, from scratch less grown"),
        Claim("cycle", "So has one that visits the small net and is mixed with itself.",
              "nats, from scratch less V-cycle"),
        Claim("mixed", "Mixing with the big net helps beyond growing alone.",
              "nats, V-cycle without mixing less with"),
    )  # fmt: skip
    null = Claim("same", "Growing by itself changes no answer.",
                 "largest difference of logits before and after")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each way with the products of ``STEPS`` steps of the big net."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        like = _net(2 * SMALL)
        dear = sum(p.numel() for p in like.parameters())
        cheap = sum(p.numel() for p in _net(SMALL).parameters())

        def train(net: nn.Module, n: int, part: int) -> nn.Module:
            minimise(
                lambda rows: cross_entropy(net(x[rows]), label[rows]), net.parameters(), FIT,
                steps=max(n, 1), seed=seed + part, rate=RATE,
            )  # fmt: skip
            return net

        tick("scratch")
        found = {"scratch": _loss(train(drawn(lambda: _net(2 * SMALL), seed), steps, 0), x, label)}
        tick("grown")
        small = train(drawn(lambda: _net(SMALL), seed), (steps // 2) * dear // cheap, 1)
        wide = Resize("decoalesce").of(small, like=like)
        with torch.no_grad():
            same = float((wide(x) - small(x)).abs().max())
        found["grown"] = _loss(train(wide, steps - steps // 2, 2), x, label)
        for name, share in (("cycle", 0.25), ("not mixed", 1.0)):
            tick(name)
            big = train(drawn(lambda: _net(2 * SMALL), seed), steps // 6, 3)
            low = Resize("coalesce").of(big, like=_net(SMALL))
            train(low, (steps // 3) * dear // cheap, 4)
            new = Resize("decoalesce", interpolate=share).of(low, big, like=like)
            found[name] = _loss(train(new, steps - steps // 6 - steps // 3, 5), x, label)
        return {
            "grown": found["scratch"] - found["grown"],
            "cycle": found["scratch"] - found["cycle"],
            "mixed": found["not mixed"] - found["cycle"],
            "same": round(same, 3),
            **{f"nats | {arm}": v for arm, v in found.items()},
        }


def _net(width: int) -> nn.Sequential:
    parts = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


@torch.no_grad()
def _loss(net: nn.Module, x: Tensor, label: Tensor) -> float:
    return float(cross_entropy(net(x[FIT:]), label[FIT:]))
