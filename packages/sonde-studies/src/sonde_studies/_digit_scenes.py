"""Scenes of several digits with the digit of each place, and random crops of scenes."""

from dataclasses import dataclass
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sonde.train import crop_places

SIDE, CELL, CROP, STRIDE = 28, 8, 16, 4
"""Pixels of a scene, a digit and a crop, and of the distance of two places."""
NEAREST, FARTHEST = 12, 24
"""Least and largest side of what a crop shows of its scene, in pixels."""


def digit_scenes(
    x: Float[Tensor, "digit 64"], label: Int[Tensor, "digit"], seed: int, n: int
) -> tuple[Float[Tensor, "scene 1 line column"], Int[Tensor, "scene place"]]:
    """Return scenes of three digits with noise, and the digit at each place, 10 for none.

    Three of nine cells hold a digit; all cells of a scene are moved together by up to four pixels.
    """
    draw = torch.Generator().manual_seed(seed)
    scenes, kinds = torch.zeros(n, SIDE, SIDE), torch.full((n, SIDE, SIDE), 10)
    for i in range(n):
        shift = torch.randint(SIDE - 3 * CELL + 1, (2,), generator=draw).tolist()
        for cell in torch.randperm(9, generator=draw)[:3].tolist():
            row = int(torch.randint(len(x), (), generator=draw))
            a, b = shift[0] + CELL * (cell // 3), shift[1] + CELL * (cell % 3)
            scenes[i, a : a + CELL, b : b + CELL] = x[row].reshape(8, 8)
            kinds[i, a : a + CELL, b : b + CELL] = label[row]
    centres = slice(STRIDE // 2, None, STRIDE)
    noise = 0.1 * torch.randn(n, 1, SIDE, SIDE, generator=draw)
    return scenes[:, None] + noise, kinds[:, centres, centres].flatten(1)


@final
@dataclass(frozen=True)
class CropPair:
    """Two crops of each scene, of other size and brightness, and the places of their tokens.

    Parameters
    ----------
    crops : Float[Tensor, "view scene 1 line column"]
    place : Float[Tensor, "view scene token axis"]
        As ``sonde.train.crop_places`` returns it.
    """

    crops: Float[Tensor, "view scene 1 line column"]
    place: Float[Tensor, "view scene token axis"]

    @classmethod
    def of(cls, scenes: Float[Tensor, "scene 1 line column"], grid: tuple[int, int]) -> Self:
        """Return crops drawn by the global generator: squares of 12 to 24 pixels, resized.

        Parameters
        ----------
        scenes : Float[Tensor, "scene 1 line column"]
        grid : (int, int)
            Tokens of a crop.
        """
        parts = [_crops(scenes) for _ in range(2)]
        crops, boxes = (torch.stack(part) for part in zip(*parts, strict=True))
        return cls(crops, crop_places(boxes, grid))

    @property
    def swapped(self) -> Self:
        """The second crops first."""
        return type(self)(self.crops.flip(0), self.place.flip(0))

    @property
    def columns(self) -> dict[str, Tensor]:
        """The scene, the view and the place of each row of both views, for ``Contrast``."""
        views, scenes = (torch.arange(n) for n in self.place.shape[:2])
        label, group = (t.expand(self.place.shape[:3]).flatten()
                        for t in (scenes[:, None], views[:, None, None]))  # fmt: skip
        return {"label": label, "group": group, "place": self.place.flatten(0, 2)}


def _crops(scenes: Tensor) -> tuple[Tensor, Tensor]:
    """Return a crop of each scene, and top, left, bottom and right of its box."""
    n = len(scenes)
    side = NEAREST + (FARTHEST - NEAREST) * torch.rand(n, 1)
    corner = (SIDE - side) * torch.rand(n, 2)
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = side[:, 0] / SIDE
    turn[:, :, 2] = ((2 * corner + side) / SIDE - 1).flip(1)  # columns come first
    cut = grid_sample(scenes, affine_grid(turn, [n, 1, CROP, CROP], False), align_corners=False)
    light = 0.7 + 0.6 * torch.rand(n, 1, 1, 1)
    return light * cut + 0.1 * torch.randn(cut.shape), torch.cat([corner, corner + side], 1)
