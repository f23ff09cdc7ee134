"""Examples of data that were added later, counted on from equal ones that were there before."""

from collections import Counter
from dataclasses import replace
from typing import final

import torch

from sonde.core.batch import Batch
from sonde.core.derived import DerivedStream
from sonde.core.stream import Stream
from sonde.store.dataset import DataSet


@final
class LaterOccurrences(DerivedStream):
    """A stream whose examples count on from those of earlier data sets with the same ids.

    Parameters
    ----------
    inner : Stream
    earlier : list of DataSet
    """

    def __init__(self, inner: Stream, earlier: list[DataSet]) -> None:
        self.inner, self.seed = inner, inner.seed
        self._counts: Counter[bytes] = Counter()
        for part in earlier:
            for unit in range(len(part.manifest.bounds) - 1):
                for batch in part.batches(unit, frozenset()):
                    self._counts.update(bytes(key) for key in batch.keys)

    def changed(self, batch: Batch) -> Batch:
        """Return a batch with later occurrences."""
        added = torch.tensor([self._counts[bytes(key)] for key in batch.keys], dtype=torch.int64)
        return replace(batch, occurrence=torch.as_tensor(batch.occurrence) + added)
