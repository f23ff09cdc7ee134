"""Scores of an input that do not depend on its batch, bit for bit.

The last bits of a product depend on how many rows it has, and those of attention on the padding. A
batch here holds inputs of one shape, so that nothing is padded, and is filled up with copies where
it is small: the inputs of the forward pass, or the rows alone if only the detectors need more of
them. From how many examples on the bits stay the same is measured on the machine, once for each
shape of input, because kernels differ. Some kernels give an input other bits at another place in
the same batch: each example is then read alone.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch
from sonde.core.reduction import AUTO
from sonde.core.result import Scorer
from sonde.core.stream import Stream
from sonde.data.encoder import Prepared
from sonde.data.encoding import takes_one
from sonde.data.inputs import ItemInputs
from sonde.engine.classes import with_classes
from sonde.engine.joining import join
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import (
    ScoredRows,
    check_scoring,
    class_columns,
    needs_of,
    record,
    reduction_of,
    schema_of_parts,
    scored_rows,
    with_layers,
)
from sonde.run.scoring.places import check_places
from sonde.run.scoring.witnesses import n_witnesses, varied_inputs, varied_rows
from sonde.stats import CalibratedScorer
from sonde.store._subset import first_examples, with_copies
from sonde.tap import LiveStream

SIZES = (1, 2, 3, 4, 8, 16)
REFERENCE = 32
"""Most examples of a batch, and those of the batch whose bits count."""
ALONE = 0
"""The size where bits depend on the place in the batch: each example has a batch of its own."""
POSITIONS, FEW = 1024, 4
"""Positions of that batch at most, unless these are fewer examples."""

Make = Callable[[Sequence[int]], InputBatch]


@dataclass(frozen=True)
class InvariantBatch:
    """Rows, logits and scores of some examples of equal shape, without the padding copies.

    Parameters
    ----------
    batch : Batch
        The logits have the same bits in any batch if a detector reads them.
    scored : dict of (method, site) to ScoredRows
    """

    batch: Batch
    scored: dict[Key, ScoredRows]


class Filling(NamedTuple):
    """Number of examples that a batch is padded to; 0 if each example is read alone.

    Parameters
    ----------
    forward : int
        In the forward pass of the model.
    scoring : int
        For the detectors.
    """

    forward: int
    scoring: int


class InvariantReader:
    """Runs the inputs of one shape at a time, and scores them.

    Parameters
    ----------
    stream : LiveStream
        The model, its sites, and how items become inputs.
    fitted : Fitted or None
        The detectors; None only reads.
    largest : int
        Most examples of one forward; at most 32 are taken. Copies may be more.
    reduction : str, default="auto"
    has_who : bool, default=False
        Keep the columns that explain a score.

    Attributes
    ----------
    smallest : dict
        For each shape and number of positions that was measured, the ``Filling`` of a batch.
    """

    def __init__(
        self,
        stream: LiveStream,
        fitted: Fitted | None,
        largest: int,
        reduction: str = AUTO,
        has_who: bool = False,
    ) -> None:
        self.stream, self.has_who = stream, has_who
        self.is_single = takes_one(stream.model)
        self.largest = 1 if self.is_single else min(largest, REFERENCE)
        self.scorers = {} if fitted is None else fitted.scorers
        tasks = {} if fitted is None else dict(zip(fitted.names, fitted.tasks, strict=True))
        self.tasks = {name: tasks[name] for name in self.scorers}
        self.hows = {
            name: reduction_of(fitted, task, reduction)
            for name, task in self.tasks.items()
            if fitted is not None
        }
        self.reads_logits = any(map(_reads_logits, self.scorers.values()))
        self.smallest: dict[Hashable, dict[int, Filling]] = {}
        self._reader = stream.reader()

    def read(self, make: Make, n: int) -> InvariantBatch:
        """Return the scores of ``n`` examples of equal shape.

        Parameters
        ----------
        make : callable
            Returns the batch of the examples of these numbers, each below ``n``, with repeats.
        n : int
        """
        inputs = make(range(n))
        filling = self._filling(inputs, make)
        if n > 1 and ALONE in filling:
            parts = [self.read(lambda numbers, i=i: make([i] * len(numbers)), 1) for i in range(n)]
            return _joined(parts)
        if filling.forward > n:
            inputs = make([*range(n), *([n - 1] * (filling.forward - n))])
        batch = first_examples(self._batch(inputs), n)
        return InvariantBatch(batch, self._scored(batch, filling.scoring))

    def read_padded(self, made: InputBatch) -> InvariantBatch:
        """Return the scores of examples of any lengths; their last bits depend on the batch."""
        batch = self._batch(made)
        return InvariantBatch(batch, self._scores(batch))

    def read_generated(self, prompts: InputBatch) -> InvariantBatch:
        """Return the scores of prompts of one shape and what the model generates after them.

        Generated texts differ in length, and their last bits depend on the batch.
        """
        batch = self.stream.read_generated(self._reader, prompts)
        check_places(batch, self.tasks, self.scorers)
        return InvariantBatch(batch, self._scores(batch))

    def _filling(self, made: InputBatch, make: Make) -> Filling:
        """Return the batch sizes that a batch of this shape is padded to.

        They are measured anew if no length between half and twice this one was. Fewer positions
        need as many more examples.
        """
        if self.is_single or not self.scorers:
            return Filling(1, 1)
        shape, length = shape_of(made)
        fillings = self.smallest.setdefault(shape, {})
        if not any(length <= 2 * other and other <= 2 * length for other in fillings):
            fillings[length] = self._measured(make, length)
        near = [(o, f) for o, f in fillings.items() if length <= 2 * o and o <= 2 * length]
        return Filling(*(_least([(o, f[i]) for o, f in near], length) for i in range(2)))

    def _batch(self, made: InputBatch) -> Batch:
        batch = self.stream.read_batch(self._reader, made)
        check_places(batch, self.tasks, self.scorers)
        return batch

    def _scored(self, batch: Batch, size: int) -> dict[Key, ScoredRows]:
        """Return the scores of a batch whose rows are padded to ``size`` examples."""
        every = self._scores(with_copies(batch, size - len(batch)))
        return {name: scored.first(len(batch)) for name, scored in every.items()}

    def _scores(self, batch: Batch) -> dict[Key, ScoredRows]:
        return {
            name: scored_rows(batch, self.tasks[name], scorer, self.hows[name], self.has_who)
            for name, scorer in self.scorers.items()
        }

    def _measured(self, make: Make, length: int) -> Filling:
        """Return the number of copies from which an example's bits no longer change."""
        top = min(REFERENCE, max(FEW, POSITIONS // length))
        sizes = [size for size in SIZES if size < top]
        every = self._batch(make([0] * top))
        alone = first_examples(every, 1)

        def read(numbers: Sequence[int]) -> list[bytes]:
            inputs = varied_inputs(make([0] * len(numbers)), numbers)
            return self._read_parts(self._batch(inputs))

        def scores(numbers: Sequence[int]) -> list[bytes]:
            batch = varied_rows(with_copies(alone, len(numbers) - 1), numbers)
            scored = self._scores(batch).values()
            return _parts(len(numbers), [(one.example, one.score) for one in scored])

        n_read = sum(x.numel() for x in alone.rows.values())
        return Filling(
            _smallest(sizes, top, n_witnesses(n_read, top), read),
            _smallest(sizes, top, n_witnesses(len(self.scorers), top), scores),
        )

    def _read_parts(self, batch: Batch) -> list[bytes]:
        """Return each example's bytes of all columns that a detector reads."""
        tensors = [*((batch.example[key], rows) for key, rows in batch.rows.items())]
        if batch.logits is not None and self.reads_logits:
            tensors.append((torch.arange(len(batch)), batch.logits))
        return _parts(len(batch), tensors)


def _reads_logits(scorer: Scorer) -> bool:
    by = scorer.by if isinstance(scorer, CalibratedScorer) else None
    return "logits" in (*needs_of(scorer), *class_columns(by))


def _smallest(
    sizes: Sequence[int], top: int, n: int, of: Callable[[Sequence[int]], Sequence[bytes]]
) -> int:
    """Return the smallest batch size from which ``n`` witnesses keep their bits.

    These are their bits in a batch of ``top``, which is the size if no smaller one gives them. If
    they depend on the place in that batch, no size keeps them, and 0 is returned.
    """
    order = [i % n for i in range(top)]
    wanted: dict[int, bytes] = {}
    for numbers in (order, order[::-1]):
        for i, part in zip(numbers, of(numbers), strict=True):
            if wanted.setdefault(i, part) != part:
                return ALONE
    smallest = top
    for size in reversed(sizes):
        for first in range(0, n, size):
            numbers = [(first + i) % n for i in range(size)]
            if any(wanted[i] != part for i, part in zip(numbers, of(numbers), strict=True)):
                return smallest
        smallest = size
    return smallest


def _joined(parts: Sequence[InvariantBatch]) -> InvariantBatch:
    """Return batches that hold an example each as a whole batch."""
    scored = {
        name: ScoredRows.joined([part.scored[name] for part in parts]) for name in parts[0].scored
    }
    return InvariantBatch(join([part.batch for part in parts]), scored)


def _least(near: Sequence[tuple[int, int]], length: int) -> int:
    fitting = (n for other, n in near if other <= length)
    more = (-(-n * other // length) for other, n in near if other > length)
    return min([*fitting, *more, REFERENCE])


def shape_of(made: InputBatch) -> tuple[Hashable, int]:
    """Return the shape of a batch's examples without positions, and their number."""
    length = 1 if made.length is None else int(made.length[0])
    given = [*enumerate(made.args), *sorted(made.kwargs.items())]
    shapes = tuple(
        (name, x.dtype, x.shape[1:] if made.length is None else x.shape[2:])
        for name, x in given
        if isinstance(x, Tensor)
    )
    return shapes, length


def _parts(n: int, found: Iterable[tuple[Tensor, Tensor]]) -> list[bytes]:
    """Return for each of ``n`` examples the bytes of its values."""
    parts: list[list[bytes]] = [[] for _ in range(n)]
    for example, values in found:
        values = values.detach().cpu().contiguous()
        raw = values.reshape(len(values), -1).view(torch.uint8).numpy()
        for i, row in zip(example.tolist(), raw, strict=True):
            parts[i].append(row.tobytes())
    return [b"|".join(part) for part in parts]


def groups_of_shape(items: Sequence[Prepared]) -> Iterator[list[int]]:
    """Yield the indices of the items of each shape, in order within a shape."""
    shapes = [shape_of_item(item) for item in items]
    order = sorted(range(len(items)), key=lambda i: (repr(shapes[i]), i))
    for _, same in groupby(order, key=lambda i: shapes[i]):
        yield list(same)


def shape_of_item(item: Prepared) -> Hashable:
    """Return the key that two prepared items must share to form a batch without padding."""
    value = item.value
    if isinstance(value, dict):
        return item.length, tuple((n, _shape(x)) for n, x in sorted(value.items()))
    return item.length, _shape(value)


def _shape(value: Any) -> Hashable:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def invariant_batches(
    fitted: Fitted, stream: Stream, reduction: str = AUTO, explain: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield the tables of ``score`` batch by batch, with results that no other input changes.

    Raises
    ------
    InputError
        If the stream is no model that reads items.
    """
    check_scoring(fitted, stream, explain)
    if not isinstance(stream, LiveStream) or not isinstance(stream.inputs, ItemInputs):
        raise InputError(
            f"score: expected a model and data for batch_invariant, got {stream!r}. Stored "
            "rows cannot be recomputed: leave --batch-invariant out."
        )
    if with_classes(stream, fitted.label_names) is not stream:
        raise InputError(
            "score: batch_invariant needs data with the probe's classes in the same order, got "
            f"the classes {', '.join(stream.label_names[:3])}. Leave --batch-invariant out."
        )
    inputs, source = stream.inputs, stream.source_rows
    reader = InvariantReader(stream, fitted, inputs.batch_size, reduction, bool(explain))
    for start, stop in pairwise(stream.units()):
        index = np.arange(start, stop)
        items = inputs.prepared(index)
        for group in groups_of_shape(items):
            for first in range(0, len(group), reader.largest):
                chosen = group[first : first + reader.largest]
                yield from _tables(reader, inputs, index, items, chosen, explain, source)


def _tables(
    reader: InvariantReader,
    inputs: ItemInputs,
    index: np.ndarray,
    items: Sequence[Prepared],
    chosen: list[int],
    explain: int,
    source: np.ndarray | None,
) -> Iterator[pa.RecordBatch]:
    def make(numbers: Sequence[int]) -> InputBatch:
        which = [chosen[i] for i in numbers]
        assembled = inputs.assembled(index[which], [items[i] for i in which])
        if assembled is None or len(assembled) != len(which):
            raise InputError(
                "score: batch_invariant needs items that can all be decoded. Leave out --skip-bad, "
                "or the broken items."
            )
        return assembled

    read = reader.read(make, len(chosen))
    lines = {
        name: record(read.batch, name, scorer, read.scored[name], explain, source)
        for name, scorer in reader.scorers.items()
    }
    if explain:
        lines = with_layers(lines, reader.hows, reader.scorers, explain)
    for columns in lines.values():
        schema = schema_of_parts(explain)
        wanted = {name: columns[name] for name in schema.names}
        yield pa.RecordBatch.from_pydict(wanted, schema=schema)
