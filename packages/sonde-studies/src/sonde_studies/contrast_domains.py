"""Contrast of units against contrast of concepts, on digits at a held-out rotation.

A concept is a cluster of units that move together, and its largest unit stands for it. The states
of one digit at two angles are pulled together, either in all units or in those of the concepts.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from sonde.measure import effective_rank, unit_clusters
from sonde.train import Contrast
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

ANGLES, FIT, STEPS, TINY, DIM, LARGEST = (0, 30, 60, 90), 1_000, 300, 10, 64, 20
WEIGHT, HEAT = 0.5, 0.2
Found = dict[str, float]


@final
class ContrastDomainsStudy(Study):
    """Cross-entropy alone, and with a contrast of units, of concepts or of random groups."""

    name = "contrast-domains"
    title = "does contrast of concepts keep more diverse units than contrast of units?"
    paper = "cococoncepts"
    fidelity = (
        "five clusters of at most 20 units, as in the code; a perceptron in place of a large net"
    )
    data = (
        "digits at 0, 30, 60 and 90 degrees: 1,000 at three angles to train on, 797 at the fourth"
    )
    claims = (
        Claim("rank", "With concepts the states keep more directions than with units.",
              "effective rank on the held-out angle, concepts less units"),
        Claim("held out", "The held-out angle is named no worse than with units, to a point.",
              "accuracy, concepts less units, and 0.01"),
        Claim("contrast", "Contrast over angles helps there beyond the cross entropy.",
              "accuracy, concepts less cross entropy alone"),
        Claim("clusters", "Clusters of units that move together do better than random ones.",
              "accuracy, concepts less random groups of the same sizes"),
    )  # fmt: skip
    null = Claim("order", "Another order of the batches changes nothing.",
                 "effective rank of two contrasts of units, difference")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Hold out each angle in turn; all arms start from one half-trained net."""
        x, label = shuffled_digits(seed)
        turned = torch.stack([_turned(x, angle) for angle in ANGLES])
        found = dict[str, list[Found]]()
        for out in range(1 if tiny else len(ANGLES)):
            tick(f"without {ANGLES[out]} degrees")
            for arm, value in _arms(turned, label, out, seed, TINY if tiny else STEPS).items():
                found.setdefault(arm, []).append(value)
        mean = {arm: {k: sum(f[k] for f in rows) / len(rows) for k in rows[0]}
                for arm, rows in found.items()}  # fmt: skip
        right, rank = ({arm: v[k] for arm, v in mean.items()} for k in ("accuracy", "rank"))
        return {
            "rank": rank["concepts"] - rank["units"],
            "held out": right["concepts"] - right["units"] + 0.01,
            "contrast": right["concepts"] - right["alone"],
            "clusters": right["concepts"] - right["random groups"],
            "order": rank["another order"] - rank["units"],
            **{f"{arm} | {k}": v for arm, row in mean.items() for k, v in row.items()},
        }


def _turned(x: Tensor, degrees: float) -> Tensor:
    """Return digits rotated about their centre."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    c, s = float(angle.cos()), float(angle.sin())
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3)
    grid = affine_grid(turn, [len(x), 1, 8, 8], align_corners=False)
    return grid_sample(x.reshape(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


def _arms(turned: Tensor, label: Tensor, out: int, seed: int, steps: int) -> dict[str, Found]:
    """Train every arm on all angles but one, with a random angle for each row."""
    kept = [i for i in range(len(ANGLES)) if i != out]
    angle = torch.tensor(kept)[torch.arange(FIT) % len(kept)]
    x, held = turned[angle, torch.arange(FIT)], turned[out, FIT:]
    start = drawn(_Net, seed)
    _learn(start, x, label, angle, None, seed, steps)
    with torch.no_grad():
        ids = unit_clusters(start.states(x), k=5, largest=LARGEST).cluster
    lot = ids[torch.randperm(DIM, generator=torch.Generator().manual_seed(seed))]
    arms: dict[str, tuple[Contrast | None, int]] = {
        "alone": (None, seed + 1),
        "units": (Contrast(HEAT), seed + 1),
        "another order": (Contrast(HEAT), seed + 1_000),
        "concepts": (_of_concepts(ids.tolist()), seed + 1),
        "random groups": (_of_concepts(lot.tolist()), seed + 1),
    }
    found = dict[str, Found]()
    for arm, (contrast, order) in arms.items():
        net = deepcopy(start)
        _learn(net, x, label, angle, contrast, order, steps)
        with torch.no_grad():
            right = (net(held).argmax(1) == label[FIT:]).double().mean()
            states = net.states(held)
        found[arm] = {"accuracy": float(right), "rank": float(effective_rank(states).value)}
    return found


def _of_concepts(ids: Sequence[int]) -> Contrast:
    return Contrast(HEAT, concepts=ids)


class _Net(nn.Module):
    """A perceptron; its second hidden layer is contrasted."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, DIM), nn.ReLU())
        self.head = nn.Linear(DIM, 10)

    def states(self, x: Tensor) -> Tensor:
        """Return the states of the last hidden layer."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x))


def _learn(
    net: _Net,
    x: Tensor,
    label: Tensor,
    angle: Tensor,
    contrast: Contrast | None,
    seed: int,
    steps: int,
) -> None:
    def loss(rows: Tensor) -> Tensor:
        states = net.states(x[rows])
        value = cross_entropy(net.head(states), label[rows])
        if contrast is None:
            return value
        return value + WEIGHT * contrast(states, label=label[rows], group=angle[rows])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, batch=96)
