"""Contrastive learning of rows with several labels of very unequal frequencies: four denominators.

Simulated rows with two to five of 200 labels, whose sizes fall by a power law. One encoder reads
rows, the other reads a description of each label.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.train import Contrast
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LABELS, DIM, FIT, HELD, STEPS, TINY, WIDTH = 200, 24, 4_000, 2_000, 1_000, 6, 32
LEAST, MOST, NOISE, COMMON = 2, 5, 0.3, 10
ARMS = {
    "softmax": Contrast(0.1),
    "decoupled": Contrast(0.1, "decoupled"),
    "without itself": Contrast(0.1, "decoupled", include_positive=False),
    "top 5": Contrast(denominator="top_k", k=MOST),
}


@final
class ExtremeLabelsStudy(Study):
    """Encoders of rows and of labels with four denominators, judged by the nearest labels."""

    name = "extreme-labels"
    title = "should the labels of a row compete with each other where labels are many?"
    paper = "gupta2024dexml"
    fidelity = "simulated rows against 200 labels; the paper has texts against up to a million"
    data = "simulated: rows of 2 to 5 of 200 labels of sizes k^-1, a vector describes each label"
    claims = (
        Claim("decoupled", "Leaving a row's other labels out of the denominator finds more of its "
              "labels than the softmax.", "recall at 5, decoupled less softmax",
              arms=("decoupled", "softmax")),
        Claim("first", "It finds one label more surely.", "precision at 1, decoupled less softmax",
              arms=("decoupled", "softmax")),
        Claim("common", "It helps most for common labels, which stand beside other labels most "
              "often.", "recall at 5, gain for the ten commonest labels less gain for the others",
              premise="decoupled", arms=("decoupled", "softmax")),
        Claim("top", "A soft top 5 finds more labels among five than the decoupled softmax.",
              "recall at 5, top 5 less decoupled", arms=("top 5", "decoupled")),
        Claim("top over softmax", "It finds more than the softmax.",
              "recall at 5, top 5 less softmax", arms=("top 5", "softmax")),
    )  # fmt: skip
    null = Claim(
        "lots",
        "Pairs of labels by lot, all labels equally often, cannot be predicted.",
        "precision at 1, decoupled, less the mean fraction of labels that a row has",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm."""
        draw = torch.Generator().manual_seed(seed)
        meaning = torch.randn(LABELS, DIM, generator=draw)
        weight = 1.0 / torch.arange(1, LABELS + 1)
        own = _sets(weight, draw)
        x = _bent(own @ meaning, draw)
        described = _bent(meaning, draw)
        steps = TINY if tiny else STEPS
        found: dict[str, dict[str, float]] = {}
        for arm in ARMS:
            tick(arm)
            found[arm] = _judged(_scores(arm, x, described, own, seed, steps), own[FIT:])
        tick("labels by lot")
        lots = by_lot(x, seed, steps)

        def gain(one: str, two: str, figure: str) -> float:
            return found[one][figure] - found[two][figure]

        return {
            "decoupled": gain("decoupled", "softmax", "recall at 5"),
            "first": gain("decoupled", "softmax", "precision at 1"),
            "common": gain("decoupled", "softmax", "recall of common")
            - gain("decoupled", "softmax", "recall of rare"),
            "top": gain("top 5", "decoupled", "recall at 5"),
            "top over softmax": gain("top 5", "softmax", "recall at 5"),
            "lots": lots,
            **{f"{figure} | {arm}": v for arm, one in found.items() for figure, v in one.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the precision at 1 on pairs of labels by lot, less their mean fraction of labels."""
    order = torch.stack([labels_by_lot(x, LABELS, LEAST * seed + k) for k in range(LEAST)], 1)
    own = torch.zeros(len(x), LABELS).scatter(1, order, 1.0)
    draw = torch.Generator().manual_seed(seed)
    described = _bent(torch.randn(LABELS, DIM, generator=draw), draw)
    told = _judged(_scores("decoupled", x, described, own, seed, steps), own[FIT:])
    return told["precision at 1"] - float(own[FIT:].mean())


def _sets(weight: Tensor, draw: torch.Generator) -> Tensor:
    """Return rows of two to five labels, drawn by their weights."""
    order = torch.multinomial(weight.expand(FIT + HELD, -1), MOST, generator=draw)
    count = torch.randint(LEAST, MOST + 1, (FIT + HELD, 1), generator=draw)
    kept = (torch.arange(MOST) < count).float()
    return torch.zeros(FIT + HELD, len(weight)).scatter(1, order, kept)


def _bent(x: Tensor, draw: torch.Generator) -> Tensor:
    """Return a curved map of rows of its own draw, with noise."""
    mixed = torch.tanh(x @ torch.randn(DIM, 2 * DIM, generator=draw) / DIM**0.5)
    return mixed + NOISE * torch.randn(mixed.shape, generator=draw)


def _scores(
    arm: str, x: Tensor, described: Tensor, own: Tensor, seed: int, steps: int
) -> Tensor:  # fmt: skip
    """Train both encoders, and return the cosines of fresh rows to labels."""
    net, loss = drawn(_nets, seed), ARMS[arm]
    minimise(lambda at: loss(net[0](x[at]), own[at].bool(), prototype=net[1](described)),
             net.parameters(), FIT, steps=steps, seed=seed, batch=192)  # fmt: skip
    with torch.no_grad():
        rows, labels = net[0](x[FIT:]), net[1](described)
    return nn.functional.normalize(rows, dim=1) @ nn.functional.normalize(labels, dim=1).T


def _nets() -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(nn.Linear(2 * DIM, 64), nn.ReLU(), nn.Linear(64, WIDTH)) for _ in range(2)
    )


def _judged(scores: Tensor, own: Tensor) -> dict[str, float]:
    """Return the precision, and the recall among five labels of common and of rare labels."""
    near = scores.topk(MOST).indices
    hit = own.gather(1, near)
    told = torch.zeros_like(own).scatter(1, near, 1.0) * own
    return {
        "precision at 1": float(hit[:, 0].mean()),
        "recall at 5": float(hit.sum() / own.sum()),
        "recall of common": float(told[:, :COMMON].sum() / own[:, :COMMON].sum()),
        "recall of rare": float(told[:, COMMON:].sum() / own[:, COMMON:].sum()),
    }
