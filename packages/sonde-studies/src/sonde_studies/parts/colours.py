"""Patches of images, recoloured patches, and correlations that recolouring changes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sonde import InputError
from sonde.data import rows_of
from sonde.layers import SecondOrder

SIZE, MOST = 40, 64
LAGS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
PAIRS = [0, 0, 1], [1, 2, 2]
KINDS = ("neighbours", "channels", "both")
Patches = Float[Tensor, "patch 3 high wide"]


def patches_of(picture: Float[Tensor, "3 high wide"], draw: torch.Generator) -> Patches:
    """Return patches of an image without overlap; a random sample if there are many."""
    cut = picture.unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE)
    found = cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIZE, SIZE)
    return found[torch.randperm(len(found), generator=draw)[:MOST]]


def recoloured(
    x: Patches, draw: torch.Generator, strength: float = 1.0
) -> tuple[Patches, Bool[Tensor, "patch"]]:
    """Return 8-bit patches with a random half recoloured, and a mask of that half."""
    changed = torch.rand(len(x), generator=draw) < 0.5
    curve = 1 + strength * 0.8 * (torch.rand(len(x), 3, 1, 1, generator=draw) - 0.5)
    mixing = strength * 0.5 * torch.rand(len(x), 3, 3, generator=draw)
    mixing = torch.eye(3) * (1 - mixing.sum(2, keepdim=True)) + mixing
    made = torch.einsum("ncd,ndhw->nchw", mixing, x.clamp(min=1e-6) ** curve).clamp(0, 1)
    mixed = torch.where(changed[:, None, None, None], made, x)
    return (mixed * 255).round() / 255, changed


def features(kind: str, x: Patches) -> Float[Tensor, "patch feature"]:
    """Return the correlations of neighbouring pixels, of channels, or both.

    Those of neighbours are of what a pixel has more than the mean of the 3 x 3 around it: of pixels
    themselves they say what the picture shows.
    """
    parts = list[Tensor]()
    if kind != "channels":
        fine = (x - avg_pool2d(x, 3, 1, 1))[:, :, 1:-1, 1:-1]
        parts.append(SecondOrder("spatial", 3, lags=LAGS)(fine).flatten(1))
    if kind != "neighbours":
        high = x[:, :, 1:, 1:] - x[:, :, :-1, :-1]  # what differs between neighbours
        for v in (x, high):
            one, two = (v[:, pick].flatten(2).flatten(0, 1) for pick in PAIRS)
            lost = SecondOrder("pearson", one.shape[1])(one, two)  # (1 - r) / 2
            parts.append(1 - 2 * lost.unflatten(0, (len(v), -1)))
    return torch.cat(parts, 1)


def opened(recipe: str, data: Any, column: str, limit: int | None) -> list[tuple[str, Tensor]]:
    """Return name and pixels in 0..1 of each image that is large enough for a patch."""
    found = list[tuple[str, Tensor]]()
    for i, row in enumerate(rows_of(data, limit)):
        if column not in row:
            raise InputError(f"{recipe}: expected the column {column!r}, got {', '.join(row)}.")
        given = row[column]
        picture = Image.open(given) if isinstance(given, str | Path) else given
        if isinstance(picture, Image.Image):
            pixels = np.asarray(picture.convert("RGB")).copy()
            x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        else:
            x = torch.as_tensor(picture).float()
        if x.ndim != 3 or len(x) != 3 or float(x.max()) > 1.0 or float(x.min()) < 0.0:
            raise InputError(
                f"{recipe}: expected pictures, or tensors (3, high, wide) with values from 0 to 1, "
                f"got {tuple(x.shape)} with values up to {float(x.max()):.3g}."
            )
        if min(x.shape[1:]) >= SIZE:
            name = Path(given).name if isinstance(given, str | Path) else f"picture {i}"
            found.append((name, x))
    return found
