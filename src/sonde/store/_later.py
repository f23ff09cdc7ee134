"""Later data whose examples continue the occurrence counts of equal examples before them."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import final

import torch

from sonde.core.batch import Batch
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream
from sonde.store._identity import is_of_arrays
from sonde.store.dataset import DataSet


def counted_on(stream: Stream, earlier: Sequence[DataSet]) -> Stream:
    """Return a stream that continues the occurrence counts of earlier data sets, by id.

    A derived stream that chooses rows by hash uses the later occurrences.
    """
    if not earlier:
        return stream
    if not isinstance(stream, DerivedStream):
        return LaterOccurrences(stream, earlier)
    found = copy.copy(stream)
    found.inner = counted_on(stream.inner, earlier)
    return found


@final
class LaterOccurrences(DerivedStream):
    """A stream that continues the occurrence counts of earlier data sets, by id.

    Parameters
    ----------
    inner : Stream
    earlier : sequence of DataSet
    """

    def __init__(self, inner: Stream, earlier: Sequence[DataSet]) -> None:
        self.inner, self.seed = inner, inner.seed
        self._by_position = is_of_arrays(earlier[0].manifest.identity)
        self._counts: dict[Hashable, int] = {}
        for part in earlier:
            sites = frozenset(s.key for s in part.volumes[0].schema[:1])
            for unit in range(len(part.manifest.bounds) - 1):
                for batch in part.batches(unit, sites if self._by_position else frozenset()):
                    self._add(batch)

    def _add(self, batch: Batch) -> None:
        occurrence = torch.as_tensor(batch.occurrence).tolist()
        for key, n in zip(self._counted(batch), occurrence, strict=True):
            self._counts[key] = max(n + 1, self._counts.get(key, 0))

    def _counted(self, batch: Batch) -> Sequence[Hashable]:
        """Return the key that equal examples share; for arrays, with the row's position."""
        keys = [bytes(key) for key in batch.keys]
        if not self._by_position:
            return keys
        site = next(iter(batch.rows))
        position = torch.zeros(len(batch), dtype=torch.int64)
        position[batch.example[site]] = batch.position[site].long()
        return list(zip(keys, position.tolist(), strict=True))

    def changed(self, batch: Batch) -> Batch:
        """Return a batch with later occurrences."""
        earlier = [self._counts.get(key, 0) for key in self._counted(batch)]
        added = torch.tensor(earlier, dtype=torch.int64)
        return replace(batch, occurrence=torch.as_tensor(batch.occurrence) + added)
