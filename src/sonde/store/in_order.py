"""The rows of a store in the order of the data: batches of a store are sorted by length."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import StoreError
from sonde.core.plan import UNIT_SIZE, unit_bounds
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream
from sonde.engine.joining import join
from sonde.store._mapped import integer_column
from sonde.store._subset import in_planned_order, with_examples
from sonde.store.layout import EXAMPLES, REPAIR, row_file
from sonde.store.volume import Volume

OfUnit = Callable[[int, Sequence[str]], Iterator[tuple[Batch, pa.RecordBatch | None]]]

PIECE_BYTES = 64 * 2**20


@final
class InOrder(DerivedStream):
    """The examples of a store in the order of the data, with their rows.

    A store holds the batches that the model ran, and these are sorted by length inside each unit of
    256 examples. Here example ``i`` is the ``i``-th item of the data, or the next piece of an item
    that was cut. About 64 MiB of rows are in memory at once.

    Parameters
    ----------
    inner : Stream
        Store whose examples are read in another order.
    of_unit : callable
        Function that gives the batches of a unit, each with a table of the named columns.
    planned : array or None
        The planned number of each example in the order of the data; None if both are equal.
    n_bytes : int
        Size of all rows.
    """

    def __init__(
        self,
        inner: Stream,
        of_unit: OfUnit,
        planned: Int[np.ndarray, "_example"] | None,
        n_bytes: int,
    ) -> None:
        self.inner, self.seed = inner, inner.seed
        self._of_unit, self._planned, self._n_bytes = of_unit, planned, n_bytes

    def _sorted(self, values: Sequence[Any]) -> Sequence[Any]:
        if self._planned is None:
            return values
        return [values[i] for i in self._planned.tolist()]

    @cached_property
    def _group_keys(self) -> Sequence[bytes]:
        return self._sorted(self.inner.group_keys)

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example."""
        return self._group_keys

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """Index of each entry's example; None if each entry is a whole example."""
        examples = self.inner.examples_of_rows
        return None if examples is None else self._sorted(examples)

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of the data item of each example."""
        numbers = self.inner.source_rows
        return numbers if numbers is None or self._planned is None else numbers[self._planned]

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return the starts of the units, and the end."""
        if self._planned is None:
            return self.inner.units(unit_size)
        return unit_bounds(self.group_keys, unit_size)

    def first_batch(self) -> Batch:
        """Return a batch of the first two examples, or of the only example."""
        return next(self.batches(0, 2))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the examples ``[start, stop)`` of the data, some at a time."""
        for batch, _ in self.parts(start, stop):
            yield batch

    def parts(
        self, start: int, stop: int, columns: Sequence[str] = ()
    ) -> Iterator[tuple[Batch, dict[str, pa.Array]]]:
        """Yield batches of the examples ``[start, stop)`` with columns of the files of examples.

        Parameters
        ----------
        start, stop : int
        columns : sequence of str
            Names of these columns in the files; each gets one value for every example of a batch.
        """
        stop = min(stop, len(self))
        per_example = self._n_bytes / max(1, len(self))
        most = int(min(UNIT_SIZE, max(1, PIECE_BYTES // max(1.0, per_example))))
        for first in range(start, stop, most):
            last = min(first + most, stop)
            planned = np.arange(first, last)
            planned = planned if self._planned is None else self._planned[first:last]
            yield from self._part(first, planned, columns)

    def _part(
        self, first: int, planned: np.ndarray, columns: Sequence[str]
    ) -> Iterator[tuple[Batch, dict[str, pa.Array]]]:
        """Yield the examples with these planned numbers, which become ``first``, ``first + 1``."""
        place = {int(number): first + i for i, number in enumerate(planned.tolist())}
        parts: list[Batch] = []
        tables: list[pa.RecordBatch] = []
        bounds = self.inner.units()
        for unit, members in groupby(np.sort(planned), lambda i: bisect_right(bounds, i) - 1):
            wanted = torch.from_numpy(np.fromiter(members, dtype=np.int64))
            for batch, table in self._of_unit(unit, columns):
                mask = torch.isin(batch.order, wanted)
                if not bool(mask.any()):
                    continue
                part = with_examples(batch, mask)
                order = torch.tensor([place[i] for i in part.order.tolist()])
                parts.append(replace(part, order=order))
                if table is not None:
                    tables.append(table.filter(pa.array(mask.numpy())))
        if not parts:
            return
        whole = join(_joinable(parts))
        joined_columns = _joined(tables, columns, pa.array(torch.argsort(whole.order).numpy()))
        yield in_planned_order(whole), joined_columns


def _joined(
    tables: Sequence[pa.RecordBatch], columns: Sequence[str], index: pa.Array
) -> dict[str, pa.Array]:
    if not columns:
        return {}
    whole = pa.Table.from_batches([t.select(list(columns)) for t in tables]).combine_chunks()
    return {name: pa.concat_arrays(whole[name].chunks).take(index) for name in columns}


def _joinable(batches: list[Batch]) -> list[Batch]:
    """Return batches without the further columns that differ in their shape between them."""
    shapes = [{name: (x.dtype, x.shape[1:]) for name, x in b.extra.items()} for b in batches]
    names = [n for n, shape in shapes[0].items() if all(s.get(n) == shape for s in shapes)]
    if all(len(names) == len(b.extra) for b in batches):
        return batches
    return [replace(b, extra={name: b.extra[name] for name in names}) for b in batches]


class RowOrder:
    """Positions in a store of the rows of one site, counted in the order of the data.

    Only the units that are asked for are looked at; each costs eight bytes a row in memory, none if
    its rows are stored in the order of the data.

    Parameters
    ----------
    volumes : sequence of (Volume, str)
        The volumes that hold the site, in order, each with its table of rows.
    ranks : sequence of array or None
        For each volume, the place of each planned example in the data; None if both are equal.
    """

    def __init__(
        self, volumes: Sequence[tuple[Volume, str]], ranks: Sequence[np.ndarray | None]
    ) -> None:
        self._windows: list[tuple[Volume, str, range, np.ndarray | None]] = []
        counts: list[int] = []
        for (volume, table), rank in zip(volumes, ranks, strict=True):
            n_rows = [sum(n) for n in _rows_of_units(volume, table)]
            units = range(len(n_rows))
            several = [range(k, k + 1) for k in units] if rank is None else [units]
            for window in several:
                self._windows.append((volume, table, window, rank))
                counts.append(sum(n_rows[k] for k in window))
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = self._ends - np.asarray(counts, dtype=np.int64)
        self._known: dict[int, np.ndarray | None] = {}

    def stored(self, index: Int[np.ndarray, "_row"]) -> Int[np.ndarray, "_row"]:
        """Return the stored number of each row of the data."""
        places = index.copy()
        windows = np.searchsorted(self._ends, index, side="right")
        for k in np.unique(windows).tolist():
            if k not in self._known:
                self._known[k] = self._order_of(*self._windows[k])
            order = self._known[k]
            if order is not None:
                inside, first = np.flatnonzero(windows == k), self._firsts[k]
                places[inside] = first + order[index[inside] - first]
        return places

    @staticmethod
    def _order_of(
        volume: Volume, table: str, units: range, rank: np.ndarray | None
    ) -> np.ndarray | None:
        orders: list[Tensor] = []
        for unit in units:
            for examples, rows in volume.columns_of(unit, ((EXAMPLES, "order"), (table, "index"))):
                order, index = integer_column(examples, "order"), integer_column(rows, "index")
                if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(order):
                    path = row_file(volume.directory, table, volume.span_of(unit))
                    raise StoreError(
                        f"Store: {path} is damaged: a row refers to an example that does not "
                        f"exist. {REPAIR}"
                    )
                orders.append(order[index])
        if not orders:
            return None
        order = torch.cat(orders).numpy()
        order = order if rank is None else rank[order]
        return None if (order[1:] >= order[:-1]).all() else np.argsort(order, kind="stable")


def _rows_of_units(volume: Volume, table: str) -> Iterator[list[int]]:
    """Yield the number of rows of each batch of each unit."""
    for span in volume.manifest.ranges():
        record = volume.record(span)
        rows = [int(n) for n in record["files"][table]["rows"]]
        ends = np.cumsum(record["batches"]).tolist()
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            yield rows[first:last]
