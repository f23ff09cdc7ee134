"""Streamed Hugging Face data sets (``datasets.IterableDataset``) as rows."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, final

from sonde.data.sources import Row, Source, Walk

MARK_ROWS = 256
MOST_MARKS = 512


@final
@dataclass(frozen=True)
class _Mark:
    """State of the data set just before a row, and the hash of that row."""

    row: int
    state: Any = None
    digest: bytes = b""


@final
class HubStream(Source):
    """A ``datasets.IterableDataset``, with undecoded images and recordings.

    The listing keeps the data set's ``state_dict`` at every 256th row, at more distant rows of long
    streams. Rows are then read from the nearest kept state, so that a run that was killed opens the
    shard where it stopped. A state that does not lead back to its row, as after ``shuffle`` with a
    buffer, is not used: such a stream is read from its start.

    Parameters
    ----------
    dataset : datasets.IterableDataset
        Data set whose rows are read; it is not changed.
    name : str
        Name for messages.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.name, self._features = name, dict(dataset.features or {})
        self.rows_differ = not self._features
        self._dataset, self._media = undecoded(dataset, self._features)
        self._marks, self._distance = [_Mark(0)], MARK_ROWS
        self._walk, self._first = Walk(self.rows), 0

    def where(self, index: int) -> str:
        """Return the location of a row for messages."""
        return f"{self.name} {self.place(index)}"

    def place(self, index: int) -> str:
        """Return the location of a row for reports."""
        return f"row {index}"

    def names_of(self, column: str) -> Sequence[str] | None:
        """Return the names of a ``ClassLabel``."""
        return getattr(self._features.get(column), "names", None)

    def rows(self) -> Iterator[Row]:
        """Yield the rows, and keep the state of the data set before some of them."""
        self._walk, self._first = Walk(self.rows), 0  # two walks would share one state
        fresh, state = self._fresh(), None
        for number, row in enumerate(fresh):
            if state is not None:
                self._keep(_Mark(number, state, _digest(row)))
            yield self._filled(row)
            is_next = (number + 1) % self._distance == 0 and number >= self._marks[-1].row
            state = fresh.state_dict() if is_next else None

    def take(self, start: int, stop: int) -> list[Row]:
        """Continue after the last row read, or start at the nearest kept state."""
        place = bisect_right(self._marks, start, key=lambda mark: mark.row) - 1
        mark, position = self._marks[place], self._first + self._walk.position
        if not mark.row <= position <= start:
            self._walk, self._first = Walk(partial(self._from, mark)), mark.row
        return self._walk.take(start - self._first, stop - self._first, self.name)

    def _fresh(self) -> Any:
        """Return the data set with a state of its own."""
        return self._dataset.with_format(None)

    def _keep(self, mark: _Mark) -> None:
        self._marks.append(mark)
        if len(self._marks) > MOST_MARKS:
            self._marks, self._distance = self._marks[::2], 2 * self._distance

    def _from(self, mark: _Mark) -> Iterator[Row]:
        """Yield the rows from a mark on; from the start if its state leads to another row."""
        fresh = self._fresh()
        if mark.state is not None:
            fresh.load_state_dict(mark.state)
        rows = iter(fresh)
        first = next(rows, None)
        if mark.state is not None and (first is None or _digest(first) != mark.digest):
            self._marks = self._marks[:1]
            rows = islice(self._fresh(), mark.row, None)
            first = next(rows, None)
        if first is not None:
            yield self._filled(first)
        yield from map(self._filled, rows)

    def _filled(self, row: Row) -> Row:
        """Return a row whose streamed images and recordings have bytes."""
        read = {name: _bytes_of(row[name]) for name in self._media if name in row}
        return {**row, **read} if read else row


def undecoded(dataset: Any, features: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Return a data set that leaves images and recordings undecoded, and their columns."""
    import datasets

    media = [n for n, f in features.items() if isinstance(f, datasets.Image | datasets.Audio)]
    for column in media:
        dataset = dataset.cast_column(column, type(features[column])(decode=False))
    return dataset, media


def _digest(row: Row) -> bytes:
    return blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _bytes_of(value: Any) -> Any:
    """Return an undecoded file with the bytes at its address, if only an address is given."""
    if not isinstance(value, dict) or value.get("bytes") is not None:
        return value
    path = value.get("path")
    if not isinstance(path, str) or "://" not in path:
        return value
    import fsspec

    with fsspec.open(path, "rb") as file:
        return {"bytes": file.read(), "path": path}  # pyright: ignore[reportAttributeAccessIssue]
