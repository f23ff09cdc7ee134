"""Faults that show in a model's answers, with their healthy twins: more plants."""

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from scan._plants import Plant, digits, net, relabelled, scan
from sonde.report import Report


def moved_on(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return labels that are one too high."""
    return (label + 1) % 10


def mistaken(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return labels of which all 8 are called 3: nothing is exchanged."""
    return torch.where(label == 8, 3, label)


def biased(by: Mapping[int, float]) -> Report:
    """Scan the trained net with other biases of some logits."""
    module = deepcopy(net())
    for logit, amount in by.items():
        module[6].bias.data[logit] += amount
    return scan(module, *digits())


def new_head() -> Report:
    """Scan the trained net with a head that was drawn anew and never trained."""
    module = deepcopy(net())
    torch.manual_seed(0)
    nn.init.normal_(module[6].weight, std=0.02)
    nn.init.zeros_(module[6].bias)
    return scan(module, *digits())


PLANTS = (
    Plant(
        "SND038",
        "error",
        lambda: relabelled(moved_on),
        lambda: relabelled(mistaken),
        folds={"SND037": "SND038", "SND039": "SND038"},
    ),
    Plant("SND039", "note", new_head, lambda: biased({})),
    Plant("SND046", "warning", lambda: biased({4: -99.0}), lambda: biased({4: -0.1})),
)
