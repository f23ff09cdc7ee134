"""Debian's Fashion-MNIST, reduced to 16 x 16 by means of four pixels."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from sonde_studies._digits import Source

GARMENTS = Path("/usr/share/datasets/fashion-mnist")
MOST, GARMENTS_FIT, GARMENTS_HELD, GARMENTS_TEST = 10_000, 1500, 750, 750


@cache
def garments() -> Source | None:
    """Return small images of ten classes, or None if the package is not installed."""
    if not GARMENTS.is_dir():
        return None
    raw = gzip.decompress((GARMENTS / "train-images-idx3-ubyte.gz").read_bytes())
    kind = gzip.decompress((GARMENTS / "train-labels-idx1-ubyte.gz").read_bytes())
    x = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)[:MOST]
    x = functional.avg_pool2d(functional.pad(x.float() / 255.0, (2, 2, 2, 2)), 2).flatten(1)
    kinds = np.frombuffer(kind[8:], np.uint8)[:MOST].astype(np.int64)
    return Source(x, kinds, GARMENTS_FIT, GARMENTS_HELD, GARMENTS_TEST)
