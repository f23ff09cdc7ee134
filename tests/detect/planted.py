"""Textures of 32 x 32 pixels with planted defects, and the maps of a detector over them."""

import torch
from torch import Tensor

from models import cnn
from sonde.core import Detector, Stream
from sonde.run.reading.read import read
from sonde.stats import score_map

SIZE = 32


def textures(n: int, seed: int) -> Tensor:
    """Return images of a pattern that is the same at each place, up to brightness and noise."""
    generator = torch.Generator().manual_seed(seed)
    line, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pattern = torch.sin(line / 2.5) * torch.cos(column / (1.5 + line / 16))
    light = 1 + 0.1 * torch.randn(n, 1, 1, 1, generator=generator)
    return light * pattern + 0.1 * torch.randn(n, 1, SIZE, SIZE, generator=generator)


def with_defects(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return textures of which a square is turned by a right angle, and where that is."""
    images, masks = textures(n, seed), torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    corners = torch.randint(2, SIZE - 12, (n, 2), generator=torch.Generator().manual_seed(seed))
    for image, mask, (top, left) in zip(images, masks, corners.tolist(), strict=True):
        part = slice(top, top + 10), slice(left, left + 10)
        image[0][part] = image[0][part].T.flip(0).clone()
        mask[part] = True
    return images, masks


def stream_of(images: Tensor, detector: Detector) -> Stream:
    """Return the patches of images at the second layer of a small net, as a detector reads them."""
    return read(cnn(), list(images), sites="conv2", batch_size=16, **detector.reading())


def maps_of(scorer, stream: Stream, sigma: float = 1.0) -> list[Tensor]:
    """Return the map of each image."""
    found = []
    for batch in stream:
        (key,) = batch.rows
        scores = scorer.score(*(batch.column(c, key) for c in _needs(scorer)))
        for i in range(len(batch)):
            mine = batch.example[key] == i
            found.append(score_map(scores[mine], batch.grid[key][mine], (SIZE, SIZE), sigma))
    return found


def _needs(scorer):
    from sonde.run.scoring.batches import needs_of

    return needs_of(scorer)
