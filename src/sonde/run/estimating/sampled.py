"""A few examples of a stream as a stream of their own, on which a job is tried."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sonde.core.plan import UNIT_SIZE
from sonde.core.stream import Stream
from sonde.data.inputs import ItemInputs
from sonde.engine.derived import DerivedStream
from sonde.tap import LiveStream


@dataclass(frozen=True, eq=False)
class FirstUnits(DerivedStream):
    """The first units of a stream whose examples cannot be drawn one by one."""

    inner: Stream
    bounds: tuple[int, ...]
    seed: int = 0

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example in these units."""
        return self.inner.group_keys[: self.bounds[-1]]

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """The example of each entry; None if each entry is a whole example."""
        whole = self.inner.examples_of_rows
        return None if whole is None else whole[: self.bounds[-1]]

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of each example's data item."""
        whole = self.inner.source_rows
        return None if whole is None else whole[: self.bounds[-1]]

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return the starts of these units, and the end."""
        return list(self.bounds)


def sampled(stream: Stream, n: int, seed: int = 0) -> Stream:
    """Return about ``n`` examples: drawn at random from live data, else the first units."""
    if n >= len(stream):
        return stream
    if isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs):
        return replace(stream, inputs=stream.inputs.drawn(n, seed))
    bounds = stream.units(min(UNIT_SIZE, n))
    last = max(1, int(np.searchsorted(bounds, n, side="right")) - 1)
    return FirstUnits(stream, tuple(bounds[: last + 1]), stream.seed)


def amount(stream: Stream) -> float:
    """Return the number of tokens in a stream if every example has a known length, else examples.

    The cost of a job grows with it.
    """
    inputs = stream.inputs if isinstance(stream, LiveStream) else None
    if isinstance(inputs, ItemInputs) and inputs.listing.length.min(initial=1) > 0:
        return float(inputs.listing.length.sum())
    return float(len(stream))
