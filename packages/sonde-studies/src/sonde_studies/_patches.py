"""Patches of images as rows, and how well patch scores find planted defects."""

import math

import torch
from torch import Tensor, nn

from sonde import read
from sonde.metrics import pixel_auroc
from sonde.stats import score_map
from sonde_studies._separation import area


def patches_of(
    model: nn.Module, images: Tensor, site: str, reducer: str = "patches"
) -> tuple[Tensor, Tensor]:
    """Return the rows of all patches, ordered by image and position, and their positions."""
    rows, places = [], []
    for batch in read(model, list(images), sites=site, reducer=reducer, batch_size=32):
        ((key, row),) = batch.rows.items()
        rows.append(row)
        places.append(batch.position[key])
    return torch.cat(rows), torch.cat(places)


def image_area(usual: Tensor, unusual: Tensor) -> float:
    """Return the AUROC of images by their worst patch, from scores (image, patch)."""
    return area(usual.amax(1), unusual.amax(1))


def patch_area(scores: Tensor, planted: Tensor) -> float:
    """Return the AUROC of planted patches against the others, both (image, patch)."""
    return area(scores[~planted], scores[planted])


def pixel_area(scores: Tensor, mask: Tensor, sigma: float = 1.0) -> float:
    """Return the AUROC of pixels by the score map.

    Parameters
    ----------
    scores : Tensor (image, patch)
        On a square grid, line by line.
    mask : Tensor (image, line, column)
    sigma : float, default=1.0
        Of the smoothing, in pixels.
    """
    side = torch.arange(math.isqrt(scores.shape[1]))
    grid, size = torch.cartesian_prod(side, side), (mask.shape[1], mask.shape[2])
    maps = [score_map(one.double(), grid, size, sigma) for one in scores]
    return float(pixel_auroc(maps, list(mask), resamples=0).value)
