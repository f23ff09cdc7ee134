"""Pairs of canvases of two digits, and nets that learn what changed between them."""

from typing import Any

import torch
from torch import Tensor, nn

from sonde.layers import Exchange

DIM = 16


def canvas(a: Tensor, b: Tensor, shift: int, draw: torch.Generator) -> Tensor:
    """Return two digits side by side, randomly shifted and brightened, as rows of 128 pixels."""
    made = torch.cat([a.reshape(-1, 8, 8), b.reshape(-1, 8, 8)], 2)
    by = torch.randint(-shift, shift + 1, (len(made), 2), generator=draw).tolist()
    moved = torch.stack([v.roll((h, w), (0, 1)) for v, (h, w) in zip(made, by, strict=True)])
    light = 0.5 + torch.rand(len(made), 1, generator=draw)
    return moved.flatten(1) * light


def pairs_of(
    x: Tensor, label: Tensor, n: int, shift: int, draw: torch.Generator
) -> list[dict[str, Any]]:
    """Return pairs; in a random half of them the right digit is replaced."""
    left, right, other = torch.randint(len(x), (3, n), generator=draw)
    changed = (torch.rand(n, generator=draw) < 0.5) & (label[right] != label[other])
    after = torch.where(changed, other, right)
    sides = (canvas(x[left], x[own], shift, draw) for own in (right, after))
    return [
        {"before": a, "after": b, "changed": int(c)}
        for a, b, c in zip(*sides, changed, strict=True)
    ]


class Siamese(nn.Module):
    """Two convolutions on each side, an exchange between them, and a head on the difference.

    Without the weighted difference each side has a convolution of its own: as many parameters, but
    for the nine weights of places and their bias.
    """

    def __init__(self, difference: bool, swap: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, DIM, 3, padding=1), nn.Conv2d(DIM, DIM, 3, padding=1)
        self.swap = Exchange("swap") if swap else None
        self.exchange = Exchange("difference", DIM) if difference else None
        own = (nn.Conv2d(DIM, DIM, 1), nn.ReLU(), nn.Conv2d(DIM, DIM, 1, bias=False))
        self.own = None if difference else nn.Sequential(*own)
        self.head = nn.Linear(DIM, 1)

    def forward(self, pair: Tensor) -> Tensor:
        """Return logits of a change, for pairs (row, side, pixel)."""
        a, b = (self.first(side.reshape(-1, 1, 8, 16)).relu() for side in pair.unbind(1))
        if self.own is not None:
            a, b = a + self.own(a), b + self.own(b)
        if self.exchange is not None:
            a, b = self.exchange(a, b)
        if self.swap is not None:
            a, b = (s.flatten(2).transpose(1, 2) for s in (a, b))
            a, b = (s.transpose(1, 2).unflatten(2, (8, 16)) for s in self.swap(a, b))
        a, b = (self.second(s).relu() for s in (a, b))
        return self.head((a - b).abs().amax((2, 3))).squeeze(1)
