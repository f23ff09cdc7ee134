"""Test whether scores of patches find anomalous pixels: a table of scores against masks."""

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.data.columns import IMAGE_NAMES
from sonde.data.folders import MediaFolder
from sonde.data.images import decode, stored
from sonde.data.sources import is_missing
from sonde.metrics import aupro, pixel_auroc
from sonde.run.scoring.evaluate import RESAMPLES, ends
from sonde.run.scoring.known import KnownItems
from sonde.run.scoring.tables import scores_of
from sonde.stats import score_map

ENDING: Final = "_mask"
Grid = tuple[int, int]


def evaluate_pixels(
    scored: pa.Table,
    data: Any,
    masks: str,
    *,
    image_column: str | None = None,
    grid: Grid | None = None,
    sigma: float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return how well each detector at each site finds the pixels that masks mark.

    ``score_map`` turns the scores of an image's patches into a map of the size of its mask. If the
    model reads a crop of the images, crop the masks in the same way.

    Parameters
    ----------
    scored : pyarrow.Table
        As ``sonde.score`` returns it with the reduction ``rows``: a line for each patch.
    data : str, path or iterable
        What was scored.
    masks : str
        A column of the data with masks or their paths; or a folder of masks, named like the images
        in ``data``, with or without ``_mask`` at the end. A pixel of a mask is unusual if it is not
        0; an image without a mask has no unusual pixel.
    image_column : str, optional
    grid : (int, int), optional
        Lines and columns of patches; by default a square, or the shape of the mask.
    sigma : float, default=0.0
        Width of a Gaussian that smooths the maps, in pixels of the masks.
    resamples, seed
        As in ``auroc``; images are resampled whole.

    Returns
    -------
    list of dict
        For each instrument and site ``n n_masked``, ``pixel_auroc`` and ``aupro`` with ``_low`` and
        ``_high``.

    Raises
    ------
    InputError
        If no mask has an unusual pixel, a mask belongs to no image, or patches have no grid.
    """
    items = KnownItems.of(data)
    truths = _Masks(items, masks, data, image_column)
    rows = []
    for (instrument, site), part, numbers in items.parts(scored):
        lines: dict[int, list[int]] = {}
        for k, number in enumerate(numbers):
            lines.setdefault(number, []).append(k)
        scores, place = scores_of(part), part["position"].to_numpy()
        truth_masks = [truths.of(i) for i in lines]
        n_masked = sum(bool(mask.any()) for mask in truth_masks)
        if n_masked == 0:
            raise InputError(
                "evaluate: expected masks with anomalous pixels, got none in the "
                f"{len(truth_masks):,} scored images."
            )
        maps = [
            _map(scores[k], place[k], mask.shape, grid, sigma)
            for k, mask in zip(lines.values(), truth_masks, strict=True)
        ]
        row = {"instrument": instrument, "site": site, "n": len(truth_masks), "n_masked": n_masked}
        options: dict[str, Any] = {"resamples": resamples, "seed": seed}
        row |= ends("pixel_auroc", pixel_auroc(maps, truth_masks, **options))
        rows.append(row | ends("aupro", aupro(maps, truth_masks, **options)))
    return rows


def _map(
    scores: np.ndarray, place: np.ndarray, size: Grid, grid: Grid | None, sigma: float
) -> Tensor:
    height, width = grid_of(len(scores), size) if grid is None else grid
    if sorted(place.tolist()) != [*range(height * width)]:
        raise InputError(
            f"evaluate: expected a line for each of {height} x {width} patches of an image, got "
            f"{plural(len(place), 'line')} at {plural(len({*place.tolist()}), 'position')} from "
            f"{place.min()} to {place.max()}. Read with a reducer of patches, and score with "
            "--reduction rows."
        )
    cells = np.stack([place // width, place % width], axis=1)
    return score_map(torch.as_tensor(scores), torch.as_tensor(cells), size, sigma)


def grid_of(n: int, size: Grid) -> Grid:
    """Return rows and columns of ``n`` patches: a square grid, or a grid shaped like the image.

    Raises
    ------
    InputError
        If neither grid fits, or if both fit and differ.

    Examples
    --------
    >>> grid_of(16, (32, 32)), grid_of(12, (30, 40))
    ((4, 4), (3, 4))
    """
    height = round(math.sqrt(n * size[0] / size[1]))
    shapes = {(h, n // h) for h in (height, math.isqrt(n)) if h and n % h == 0}
    shapes = {s for s in shapes if s[0] in (height, s[1])}
    if len(shapes) != 1:
        raise InputError(
            f"evaluate: {n} patches do not form a known grid for an image of {size[0]} x "
            f"{size[1]} pixels. Give the grid: --grid LINES COLUMNS."
        )
    return shapes.pop()


class _Masks:
    """Masks of the items; an item without a mask gets zeros of its image's size."""

    def __init__(self, known: KnownItems, masks: str, data: Any, image_column: str | None) -> None:
        self.known, self.base = known, known.source.base
        names = IMAGE_NAMES if image_column is None else (image_column,)
        self.image = next((n for n in names if any(n in r for r in known.items.values())), names[0])
        is_column = any(masks in row for row in known.items.values())
        self.column = masks if is_column else None
        self.files = {} if is_column else self._files(Path(masks), data)

    def _files(self, folder: Path, data: Any) -> Mapping[int, Path]:
        """Return the mask file of each item; every file in the folder must belong to an item."""
        if not folder.is_dir():
            raise InputError(
                f"evaluate: expected a column of {self.known.source.name} or a folder of masks, "
                f"got {str(folder)!r}."
            )
        named = {
            _stem(str(row.get(self.image, "")), data): i for i, row in self.known.items.items()
        }
        files: dict[int, Path] = {}
        for row in MediaFolder(folder).rows():
            stem = _stem(str(row["image"]), folder)
            item = named.get(stem, named.get(stem.removesuffix(ENDING)))
            if item is None or item in files:
                raise InputError(
                    f"evaluate: expected one mask for an image of {self.known.source.name}, got "
                    f"{row['image']}, whose name matches "
                    f"{'no image' if item is None else 'an image that already has a mask'}."
                )
            files[item] = row["image"]
        return files

    def of(self, item: int) -> np.ndarray:
        """Return a mask of the anomalous pixels of an item."""
        row = self.known.items[item]
        value = self.files.get(item) if self.column is None else row.get(self.column)
        try:
            if is_missing(value):
                image = decode(stored(row, self.image, self.base))
                return np.zeros((image.height, image.width), dtype=bool)
            if isinstance(value, list | np.ndarray):
                values = np.asarray(value)
            else:
                values = np.asarray(decode(stored({"mask": value}, "mask", self.base)))
        except InputError as error:
            raise InputError(f"evaluate: the mask of item {item}: {error}") from error
        return (values if values.ndim == 2 else values[..., :3].any(-1)) != 0


def _stem(path: str, folder: Any) -> str:
    """Return the path of a file relative to its folder, without the suffix."""
    whole = PurePath(path)
    base = PurePath(str(folder)) if isinstance(folder, str | Path) else PurePath()
    inside = whole.relative_to(base) if whole.is_relative_to(base) else whole
    return str(inside.with_suffix("")) if inside.name else ""
