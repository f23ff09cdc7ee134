"""Contrastive learning of many labels with very unequal frequencies: four denominators.

Simulated rows of 120 labels whose sizes fall by a power law: batches hold many rows of some.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.train import Contrast
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LABELS, DIM, FIT, HELD, STEPS, TINY, WIDTH = 120, 24, 4_000, 2_000, 150, 6, 32
ARMS = {
    "softmax": Contrast(0.1),
    "decoupled": Contrast(0.1, "decoupled"),
    "without itself": Contrast(0.1, "decoupled", include_positive=False),
    "top 5": Contrast(denominator="top_k", k=5),
}


@final
class ExtremeLabelsStudy(Study):
    """Encoders with four denominators, judged by the label of the nearest training row."""

    name = "extreme-labels"
    title = "should positives compete with each other where labels are many?"
    paper = "gupta2024dexml"
    fidelity = "rows against rows; the paper has texts against labels, up to a million"
    data = "simulated: 120 labels of sizes k^-1, 24 columns, noise"
    claims = (
        Claim("decoupled", "Leaving other positives out of the denominator helps.",
              "precision at 1, decoupled less softmax",
              arms=("decoupled", "softmax")),
        Claim("common", "It helps most for common labels, whose rows have many positives.",
              "gain for the ten commonest labels less gain for the others", premise="decoupled"),
        Claim("top", "A soft top-k helps beyond the softmax.",
              "precision at 1, top 5 less softmax",
              arms=("top 5", "softmax")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot, equally many of each, are not told of other rows.",
                 f"precision at 1, decoupled, less 1/{LABELS}")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm."""
        draw = torch.Generator().manual_seed(seed)
        centres = torch.randn(LABELS, DIM, generator=draw)
        weight = 1.0 / torch.arange(1, LABELS + 1)
        label = torch.multinomial(weight, FIT + HELD, replacement=True, generator=draw)
        rows = centres[label] + 0.9 * torch.randn(FIT + HELD, DIM, generator=draw)
        x = torch.cat([rows, rows[:, :8] * rows[:, 8:16]], 1)
        found, common = dict[str, float](), dict[str, float]()
        steps = TINY if tiny else STEPS
        for arm in ARMS:
            tick(arm)
            right = _right(_learned(arm, x, label, seed, steps), x, label)
            few = label[FIT:] < 10
            found[arm] = float(right.mean())
            common[arm] = float(right[few].mean() - right[~few].mean())
        tick("labels by lot")
        return {
            "decoupled": found["decoupled"] - found["softmax"],
            "common": common["decoupled"] - common["softmax"],
            "top": found["top 5"] - found["softmax"],
            "lots": by_lot(x, seed, steps),
            **{f"precision | {arm}": v for arm, v in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the precision on labels by lot, less that of chance."""
    lots = labels_by_lot(x, LABELS, seed)
    right = _right(_learned("decoupled", x, lots, seed, steps), x, lots)
    return float(right.mean()) - 1 / LABELS


def _learned(arm: str, x: Tensor, label: Tensor, seed: int, steps: int) -> nn.Module:
    net, loss = drawn(_net, seed), ARMS[arm]
    minimise(lambda at: loss(net(x[at]), label[at]), net.parameters(), FIT, steps=steps,
             seed=seed, batch=192)  # fmt: skip
    return net


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM + 8, 64), nn.ReLU(), nn.Linear(64, WIDTH))


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    code = nn.functional.normalize(net(x), dim=1)
    near = (code[FIT:] @ code[:FIT].T).argmax(1)
    return (label[:FIT][near] == label[FIT:]).double()
