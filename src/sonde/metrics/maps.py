"""Locate anomalies in images: AUROC of pixels, and the overlap of regions (PRO)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.tensors import as_tensor
from sonde.metrics._ranked import Ranked, steps
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, Metric, measured, members
from sonde.metrics.ranking import auroc


def pixel_auroc(
    maps: Sequence[Any],
    masks: Sequence[Any],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the AUROC of all pixels; images are resampled whole.

    Parameters
    ----------
    maps : sequence of array (line, column)
        Map of scores of each image, higher is more outlying.
    masks : sequence of array (line, column)
        1 where a pixel is unusual.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> pixel_auroc([[[0.9, 0.1], [0.2, 0.1]]], [[[1, 0], [0, 0]]], resamples=0).value
    1.0
    """
    values, unusual, image, _ = _pixels("pixel_auroc", maps, masks)
    return auroc(values, unusual, image, resamples=resamples, seed=seed, level=level)


def aupro(
    maps: Sequence[Any],
    masks: Sequence[Any],
    *,
    limit: float = 0.3,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the area under the per-region overlap up to a false-positive rate, over that rate.

    At each threshold the overlap is the mean, over connected regions of unusual pixels (neighbours
    also across corners), of the share of a region at or above it. All thresholds count, the last
    piece is cut at the limit by linear interpolation, and masks are not widened.

    Parameters
    ----------
    maps : Sequence[Any]
        Map of scores of each image, higher is more outlying.
    masks : Sequence[Any]
        Mask of each image: 1 at outlying pixels, 0 at the others.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).
    limit : float, default=0.3
        Largest share of usual pixels at or above a threshold.

    Examples
    --------
    >>> aupro([[[0.9, 0.1], [0.2, 0.1]]], [[[1, 0], [0, 0]]], resamples=0).value
    1.0

    References
    ----------
    bergmann2021mvtec
    """
    if not 0 < limit <= 1:
        raise InputError(f"aupro: expected a limit in (0, 1], got {limit}.")
    values, unusual, image, region = _pixels("aupro", maps, masks)
    if not bool(unusual.any()) or bool(unusual.all()):
        raise InputError(
            "aupro: expected both normal and anomalous pixels, got only one of the two."
        )
    ranked = Ranked.of(values, descending=True)
    sizes = torch.bincount(region[unusual]).double()
    share = torch.zeros(len(values), dtype=torch.float64)
    share[unusual] = 1 / sizes[region[unusual]]

    def figure(weight: Tensor) -> Tensor:
        covered, false = ranked.sums(weight * share), ranked.sums(weight * ~unusual)
        return _area(false / false[:, -1:], covered / covered[:, -1:], limit) / limit

    return measured(
        figure, members(image, len(values)), Bootstrap(resamples, seed, level), range=(0.0, 1.0),
        kinds=(unusual, ~unusual),
        conventions={"limit": limit, "regions": len(sizes), "neighbourhood": 8},
        n_positive=int(unusual.sum()), n_negative=int((~unusual).sum()),
    )  # fmt: skip


def _area(
    x: Float[Tensor, "resample block"], y: Float[Tensor, "resample block"], limit: float
) -> Float[Tensor, "resample"]:
    """Return the area under lines from (0, 0) through the points, up to ``x = limit``."""
    width, rise = steps(x), steps(y)
    start, bottom = x - width, y - rise
    inside = (limit - start).clamp_min(0).minimum(width)
    slope = torch.where(width > 0, rise / width.clamp_min(1e-300), torch.zeros_like(rise))
    return (inside * (bottom + slope * inside / 2)).sum(1)


def _pixels(
    name: str, maps: Sequence[Any], masks: Sequence[Any]
) -> tuple[Float[Tensor, "pixel"], Tensor, Int[Tensor, "pixel"], Int[Tensor, "pixel"]]:
    """Return the score, kind, image and connected region of every pixel."""
    from scipy.ndimage import label

    if len(maps) == 0 or len(maps) != len(masks):
        raise InputError(f"{name}: expected a mask for each map, got {len(maps)}, {len(masks)}.")
    parts: list[tuple[np.ndarray, ...]] = []
    n_regions = 0
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        score = as_tensor(name, scores, "maps").detach().double().cpu().numpy()
        truth = (as_tensor(name, mask, "masks").detach() != 0).cpu().numpy()
        if score.ndim != 2 or score.shape != truth.shape or np.isnan(score).any():
            raise InputError(
                f"{name}: expected a map without NaN and a mask of the same shape (line, "
                f"column), got {score.shape} and {truth.shape} for image {i}."
            )
        labelled: Any = label(truth, structure=np.ones((3, 3)))
        regions, region_maps = labelled
        parts.append((score, truth, np.full(score.shape, i), regions + n_regions - 1))
        n_regions += int(region_maps)
    score, unusual, image, region = (
        torch.from_numpy(np.concatenate([p[k].ravel() for p in parts])) for k in range(4)
    )
    return score, unusual, image.long(), region.long()
