"""Patches of photographs, and haze, rain or snow laid over them."""

from typing import Any

import torch
from jaxtyping import Float
from sklearn.datasets import load_sample_images  # pyright: ignore
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

SIDE, SMALLER = 16, 2
KINDS = ("haze", "rain", "snow")
LEAST_SPAN = 0.3
"""Of the values of a patch."""
STREAK = 7
"""Length of a streak of rain, in pixels."""
Patches = Float[Tensor, "patch 3 high wide"]


def photographs() -> list[Float[Tensor, "3 high wide"]]:
    """Return the two photographs that scikit-learn ships, in [0, 1], at half of their size."""
    found: Any = load_sample_images().images
    return [avg_pool2d(torch.tensor(p).permute(2, 0, 1) / 255.0, SMALLER) for p in found]


def patches_of(picture: Float[Tensor, "3 high wide"], n: int, draw: torch.Generator) -> Patches:
    """Return random patches of 16 x 16 pixels, each stretched to values from 0 to 1.

    Patches of nearly one value are left out.
    """
    high, wide = picture.shape[1:]
    found = list[Tensor]()
    while len(found) < n:
        i, j = (int(torch.randint(k - SIDE + 1, (), generator=draw)) for k in (high, wide))
        patch = picture[:, i : i + SIDE, j : j + SIDE]
        if (span := float(patch.max() - patch.min())) >= LEAST_SPAN:
            found.append((patch - patch.min()) / span)
    return torch.stack(found)


def weathered(x: Patches, kind: str, draw: torch.Generator) -> Patches:
    """Return patches under haze, rain or snow of random strength.

    Haze mixes a patch with a light grey. Rain adds bright, slanted streaks. Snow covers small
    squares with nearly white.
    """
    if kind == "haze":
        left, air = _uniform(len(x), 0.3, 0.7, draw), _uniform(len(x), 0.7, 1.0, draw)
        return x * left + air * (1 - left)
    drops = torch.rand(len(x), 1, *x.shape[2:], generator=draw)
    if kind == "rain":
        wet = (drops < 0.02).float()
        slant = torch.stack([_streak(int(k), STREAK) for k in (-1, 0, 1)])[:, None]
        which = torch.randint(3, (len(x),), generator=draw)
        lines = conv2d(wet, slant, padding=STREAK // 2)[torch.arange(len(x)), which, None]
        return (x + _uniform(len(x), 0.2, 0.5, draw) * lines.clamp(max=1)).clamp(max=1)
    flakes = conv2d((drops < 0.04).float(), torch.ones(1, 1, 2, 2), padding=1)[..., 1:, 1:]
    cover = _uniform(len(x), 0.6, 0.9, draw) * flakes.clamp(max=1)
    return x * (1 - cover) + 0.95 * cover


def mixed_weather(x: Patches, draw: torch.Generator) -> Patches:
    """Return patches, a third under haze, a third under rain and a third under snow, in turn."""
    made = torch.empty_like(x)
    for i, kind in enumerate(KINDS):
        made[i :: len(KINDS)] = weathered(x[i :: len(KINDS)], kind, draw)
    return made


def _uniform(n: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=draw)


def _streak(lean: int, length: int) -> Float[Tensor, "length length"]:
    """Return a line that moves by ``lean`` half pixels to the right in each row."""
    kernel, row = torch.zeros(length, length), torch.arange(length)
    column = length // 2 + (lean * (row - length // 2)) // 2
    kernel[row, column] = 1.0
    return kernel
