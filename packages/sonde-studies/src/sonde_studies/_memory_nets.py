"""Nets with a memory of earlier states: queues, stacks of them, a recurrent cell, or none."""

import torch
from torch import Tensor, nn

from sonde.layers import StateQueue
from sonde_studies._remembered_sequences import LENGTH

DELAY, DIM = 6, 12


class MemoryNet(nn.Module):
    """A map of each step, a memory, and a second map."""

    def __init__(self, arm: str, width: int = 1, length: int = LENGTH) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, DIM), nn.Linear(DIM, width)
        self.cell = nn.GRU(DIM, DIM, batch_first=True) if arm == "cell" else None
        self.queue = _queue(arm)
        placed = arm in ("attention", "soft")
        self.places = nn.Parameter(0.1 * torch.randn(length, DIM)) if placed else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h if self.places is None else h + self.places[: x.shape[1]]
        h = self.queue(h) if self.cell is None else self.cell(h)[0]
        return self.last(h)


class DenseLayers(nn.Module):
    """Layers that each read a linear map of the input and of all earlier layers' outputs."""

    def __init__(self, layers: list[StateQueue]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.maps = nn.ModuleList(nn.Linear((i + 1) * DIM, DIM) for i in range(len(layers)))

    def forward(self, x: Tensor) -> Tensor:
        told = [x]
        for layer, put in zip(self.layers, self.maps, strict=True):
            told.append(layer(put(torch.cat(told, 2))))
        return told[-1]


def _queue(arm: str) -> nn.Module:
    if arm in ("gated", "ungated"):
        return StateQueue(DIM, DELAY // 2, stride=2, gated=arm == "gated")
    if arm == "soft":
        return StateQueue(DIM, DELAY, "attention", push="soft")
    if arm.endswith("layers"):
        strides = (1, 1, 1) if arm == "undilated layers" else (1, 2, 4)
        gated = arm != "ungated layers"
        layers = [StateQueue(DIM, 2, stride=stride, gated=gated) for stride in strides]
        return DenseLayers(layers) if arm == "dense layers" else nn.Sequential(*layers)
    taps = {"filter": DELAY, "attention": DELAY, "short": DELAY - 1}
    kind = "attention" if arm == "attention" else "filter"
    return StateQueue(DIM, taps[arm], kind) if arm in taps else nn.Identity()
