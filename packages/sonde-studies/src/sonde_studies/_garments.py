"""Debian's Fashion-MNIST: images of 32 x 32, and of 16 x 16, means of four pixels."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sonde_studies._digits import Source

SHARED = (Path("/usr/share"), Path(".field/debian/usr/share"))
"""Where Debian's files lie: installed, or unpacked by ``make places`` and ``make field``."""
MOST, GARMENTS_FIT, GARMENTS_HELD, GARMENTS_TEST = 10_000, 1500, 750, 750


def debian_files(name: str) -> Path | None:
    """Return a folder below ``/usr/share``, installed or unpacked; None if there is none."""
    return next((folder for place in SHARED if (folder := place / name).is_dir()), None)


def fashion_mnist(n: int) -> tuple[Tensor, np.ndarray] | None:
    """Return the first ``n`` training images (image, 1, 32, 32) in [0, 1] and their classes.

    The 28 x 28 pixels have a border of two zeros. None if the package is not there.
    """
    folder = debian_files("datasets/fashion-mnist")
    if folder is None:
        return None
    raw = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    kind = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    x = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)[:n]
    return functional.pad(x, (2, 2, 2, 2)) / 255.0, np.frombuffer(kind[8:], np.uint8)[:n]


@cache
def garments() -> Source | None:
    """Return small images of ten classes, or None if the package is not installed."""
    found = fashion_mnist(MOST)
    if found is None:
        return None
    x, kind = found
    small = functional.avg_pool2d(x, 2).flatten(1)
    return Source(small, kind.astype(np.int64), GARMENTS_FIT, GARMENTS_HELD, GARMENTS_TEST)
