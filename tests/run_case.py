"""Streams that tests of runs drive: plain rows, and one that is interrupted."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.stream import Stream
from sonde.engine.array_stream import ArrayStream
from sonde.engine.derived import DerivedStream


def rows(n: int, dim: int = 4, seed: int = 0) -> Tensor:
    """Return rows of correlated noise that are not centred."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator)
    return torch.randn(n, dim, generator=generator) @ mix + 3.0


def stream(n: int = 600, dim: int = 4, seed: int = 0, **columns: Any) -> ArrayStream:
    """Return one site of noise."""
    return Stream.of(rows(n, dim, seed), **columns)


class Stopping(DerivedStream):
    """A stream that is interrupted when the unit of number ``after`` is asked for."""

    def __init__(self, inner: Stream, after: int | None = None) -> None:
        self.inner, self.after, self.seed = inner, after, inner.seed
        self.asked: list[tuple[int, int]] = []

    def first_batch(self) -> Batch:
        return next(self.batches(0, 2))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        if self.after is not None and len(self.asked) >= self.after:
            raise KeyboardInterrupt
        self.asked.append((start, stop))
        yield from self.inner.batches(start, stop)
