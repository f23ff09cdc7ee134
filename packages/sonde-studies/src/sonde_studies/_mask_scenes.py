"""Scenes of three digits and clutter, with the mask of the digit of the highest class."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SIDE, CELL, INK = 24, 8, 0.5
"""Pixels of a scene and of a digit; the least brightness of a pixel of a mask."""


class Scenes(NamedTuple):
    """Pictures, masks (1 inside, 0 outside), and the highest digit of each."""

    picture: Float[Tensor, "scene 1 line column"]
    mask: Float[Tensor, "scene 1 line column"]
    kind: Int[Tensor, "scene"]


def masked_scenes(
    x: Float[Tensor, "digit pixel"], label: Int[Tensor, "digit"], seed: int, n: int
) -> Scenes:
    """Return scenes of three digits of different classes; the mask is that of the highest.

    Parameters
    ----------
    x : Float[Tensor, "digit pixel"]
        Images of 8 x 8 pixels to choose from, some of each class.
    label : Int[Tensor, "digit"]
    seed, n : int
    """
    draw = torch.Generator().manual_seed(seed)
    scenes = torch.zeros(n, SIDE, SIDE)
    masks = torch.zeros(n, SIDE, SIDE)
    largest = torch.zeros(n, dtype=torch.int64)
    cells = (SIDE // CELL) ** 2
    for i in range(n):
        kinds = torch.randperm(10, generator=draw)[:3]
        places = torch.randperm(cells, generator=draw)[:3].tolist()
        largest[i] = kinds.max()
        for kind, place in zip(kinds, places, strict=True):
            of_kind = torch.nonzero(label == kind).flatten()
            image = x[of_kind[torch.randint(len(of_kind), (1,), generator=draw)]].reshape(8, 8)
            a, b = CELL * (place // (SIDE // CELL)), CELL * (place % (SIDE // CELL))
            scenes[i, a : a + CELL, b : b + CELL] = image
            if kind == largest[i]:
                masks[i, a : a + CELL, b : b + CELL] = (image > INK).float()
    clutter = (torch.rand(scenes.shape, generator=draw) < 0.05) & (scenes == 0)
    return Scenes(torch.where(clutter, 0.7, scenes)[:, None], masks[:, None], largest)


@torch.no_grad()
def overlap(net: nn.Module, scenes: Scenes) -> float:
    """Return the mean intersection over union of predicted and true masks."""
    drawn_mask, true = net(scenes.picture) > 0, scenes.mask > 0
    both = (drawn_mask & true).sum((1, 2, 3)).double()
    return float((both / (drawn_mask | true).sum((1, 2, 3)).clamp(min=1)).mean())
