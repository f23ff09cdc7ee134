"""Small nets fine-tuned from one base on parts of the digits, for merging."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonde.weights import MergeRule, with_tensors
from sonde_studies.worlds.learning import digit_images, drawn, learn_labels

Way = Literal["turned", "classes"]

TRAIN, KINDS = 1000, 10
BASE, OWN = 40, 150
WAYS: tuple[Way, ...] = ("turned", "classes")


@dataclass(frozen=True)
class Experts:
    """Digits, the expert of each digit, a base net, and its fine-tuned experts.

    The first ``TRAIN`` digits are for training.
    """

    x: Tensor
    label: Tensor
    expert: Tensor
    base: nn.Module
    nets: Sequence[nn.Module]

    def merged(self, rule: MergeRule) -> Any:
        """Return the net that a merging rule makes of the experts."""
        parts = [dict(net.named_parameters()) for net in self.nets]
        own = self.base.named_parameters()
        merged = {n: rule.merge(n, w.data, [part[n].data for part in parts]) for n, w in own}
        return with_tensors(self.base, merged)

    def right(self, net: nn.Module, rows: slice = slice(TRAIN, None)) -> float:
        """Return a net's accuracy, by default on the test digits."""
        return float((net(self.x[rows]).argmax(1) == self.label[rows]).double().mean())


def experts(way: Way, seed: int, tiny: bool = False) -> Experts:
    """Train a base briefly, and an expert for each part of the digits.

    Parameters
    ----------
    way : {"turned", "classes"}
        Four parts, each turned by other quarters; or five parts of two classes each.
    seed : int
    tiny : bool
        With a twentieth of the steps.
    """
    x, label = digit_images(seed)
    if way == "turned":
        expert = torch.arange(len(x)) % 4
        x = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(x, expert, strict=True)])
    else:
        order = torch.randperm(KINDS, generator=torch.Generator().manual_seed(seed))
        expert = order[label] // 2
    base, nets, fewer = drawn(_net, seed), [], 20 if tiny else 1
    seen, known, of = x[:TRAIN], label[:TRAIN], expert[:TRAIN]
    learn_labels(base, seen, known, steps=BASE // fewer, seed=seed)
    for number in range(int(expert.max()) + 1):
        mine, own = copy.deepcopy(base), of == number
        learn_labels(mine, seen[own], known[own], steps=OWN // fewer, seed=seed + number, rate=1e-3)
        nets.append(mine)
    return Experts(x, label, expert, base, nets)


def _net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, KINDS)),
    )
