"""``DerivedStream``: a stream that wraps another and forwards unchanged parts."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from sonde.core.batch import Batch, SiteSchema
from sonde.core.left_out import LeftOut
from sonde.core.plan import UNIT_SIZE
from sonde.core.stream import Stream


class DerivedStream(Stream):
    """A stream whose batches, or units, differ from those of the stream ``inner``.

    Attributes
    ----------
    inner : Stream
    """

    inner: Stream

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows, in order of execution."""
        return self.inner.schema

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example."""
        return self.inner.group_keys

    @property
    def grouped(self) -> bool:
        """True if groups were given or examples were cut into chunks."""
        return self.inner.grouped

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """Index of each entry's example; None if each entry is a whole example."""
        return self.inner.examples_of_rows

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number."""
        return self.inner.label_names

    @property
    def own_labels(self) -> bool:
        """True if the data's class numbers are known to be the model's class numbers."""
        return self.inner.own_labels

    @property
    def labels_number_outputs(self) -> bool:
        """True if the labels, in their order, name the outputs of a model without names."""
        return self.inner.labels_number_outputs

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of the data item of each example."""
        return self.inner.source_rows

    @property
    def behaviour(self) -> dict[str, Any] | None:
        """States of a few drawn inputs, by which the model is recognised; None if unknown."""
        return self.inner.behaviour

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Sites that are not read by default, each with the reason."""
        return self.inner.left_out

    @property
    def clearance(self) -> tuple[str, ...]:
        """Access labels of the reader."""
        return self.inner.clearance

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return the starts of the units, and the end."""
        return self.inner.units(unit_size)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the inner stream."""
        return self.inner.identity()

    def first_batch(self) -> Batch:
        """Return a batch of the first two examples, or of the only example."""
        return self.changed(self.inner.first_batch())

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of one unit."""
        for batch in self.inner.batches(start, stop):
            yield self.changed(batch)

    def changed(self, batch: Batch) -> Batch:
        """Return the batch that replaces a batch of the inner stream."""
        return batch


def innermost(stream: Stream) -> Stream:
    """Return the original stream inside a chain of derived streams."""
    while isinstance(stream, DerivedStream):
        stream = stream.inner
    return stream
