"""Leave copies of rows out of data, unless rows of few values are equal by chance."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Int

from sonde.core.errors import InputError
from sonde.core.hashing import tensor_key
from sonde.data.folders import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from sonde.data.opening import open_source
from sonde.data.sources import Row, Source

ID: Final = "id"
BY_CHANCE: Final = 0.01
"""Expected number of equal pairs from which rows of unrelated columns are equal by chance."""
SOME_ROWS, SOME_UNITS = 4096, 64
LOOKED_AT: Final = 100
"""With a limit, rows that are looked at for each row that is kept at most."""


@final
@dataclass(frozen=True, eq=False)
class DifferentRows:
    """Data without copies of rows, and the numbers of rows.

    Parameters
    ----------
    data : Any
        What is left, for everything that reads data. Data without copies are the given object.
    n, n_different : int
        Number of rows that were compared, and number of different rows among them.
    n_named_apart : int
        Rows with the content of an earlier row and another id, which stay: ids name the rows.
    """

    data: Any
    n: int = 0
    n_different: int = 0
    n_named_apart: int = 0


def different_rows(data: Any, limit: int | None = None) -> DifferentRows:
    """Return the data without copies: rows that equal an earlier row in every column.

    Files of images and recordings are compared by their content. Rows with different ids are
    different. Rows are equal by chance, and all of them stay, if columns with these values that
    are unrelated to each other would make 0.01 equal pairs or more: a table of few categories. If
    the data cannot be read, they are returned unchanged, and whoever reads them says why.

    Parameters
    ----------
    data : str, path or re-iterable
        What ``open_inputs`` takes.
    limit : int, optional
        How many items will be read: copies are searched among the first 100 times as many rows.

    Examples
    --------
    >>> found = different_rows([{"text": "a b"}, {"text": "c"}, {"text": "a b"}])
    >>> found.n, found.n_different, len(found.data)
    (3, 2, 2)
    """
    most = None if limit is None else LOOKED_AT * limit
    if isinstance(data, list):
        rows: Any = data
        base, source = Path(), None
    else:
        try:
            source, n_picked = open_source(data)
            base = source.base
            rows = None if n_picked is not None else source
        except (InputError, OSError):
            return DifferentRows(data)
    if rows is None:
        return DifferentRows(data)
    try:
        keys = [_keys(row, base) for row in islice(_each(rows), most)]
    except (InputError, OSError, _UnknownValue):
        return DifferentRows(data)
    first = dict[bytes, int]()
    for i, (_, whole) in enumerate(keys):
        first.setdefault(whole, i)
    n, kept = len(keys), np.array([*first.values()], dtype=np.int64)
    apart = len(kept) - len({keys[i][0] for i in kept.tolist()})
    if len(kept) == n or _by_chance(_chosen(rows, kept[:SOME_ROWS]), len(kept)):
        return DifferentRows(data, n, n, apart)
    return DifferentRows(_left(data, source, kept, n), n, len(kept), apart)


def kept_rows(data: Any, index: Int[np.ndarray, "row"]) -> Any:
    """Return some rows of data; ``row_number`` gives the number of each in the user's data.

    Parameters
    ----------
    data : str, path or re-iterable
        What ``open_inputs`` takes.
    index : array (row,)
        Numbers of the rows, in ascending order.

    Examples
    --------
    >>> left = kept_rows(["a b", "c", "d"], np.array([0, 2]))
    >>> left, row_number(left, 1)
    (['a b', 'd'], 2)
    """
    if isinstance(data, list):
        return _left(data, None, index, len(data))
    source, _ = open_source(data)
    return _left(data, source, index, sum(1 for _ in source.rows()))


def _left(data: Any, source: Source | None, kept: Int[np.ndarray, "row"], n: int) -> Any:
    """Return some of the first ``n`` rows, and all later rows."""
    if source is None:
        return _KeptItems(data, [*kept.tolist(), *range(n, len(data))])
    return _Kept(source, kept, n)


class _UnknownValue(Exception):
    """A value whose content is not known."""


def row_number(data: Any, index: int) -> int:
    """Return the number that a row has in the data that the user gave.

    Parameters
    ----------
    data : Any
        Data, or what ``different_rows`` left of them.
    index : int
        Number of the row in ``data``.

    Examples
    --------
    >>> left = different_rows(["a b", "a b", "c"]).data
    >>> left[1], row_number(left, 1)
    ('c', 2)
    """
    return data.number(index) if isinstance(data, _Kept | _KeptItems) else index


@final
class _KeptItems(list[Any]):
    """Some items of a list, which know their numbers there."""

    def __init__(self, given: Sequence[Any], numbers: Sequence[int]) -> None:
        super().__init__(given[i] for i in numbers)
        self._numbers = [row_number(given, i) for i in numbers]

    def number(self, index: int) -> int:
        """Return the number of an item in the given list."""
        return self._numbers[index]


@final
class _Kept(Source):
    """Some of the first rows of a source, and all later rows."""

    def __init__(self, source: Source, kept: Int[np.ndarray, "row"], n_first: int) -> None:
        self._source, self._kept, self._n_first = source, kept, n_first
        self.name, self.rows_differ, self.by_name = source.name, source.rows_differ, source.by_name
        self.n_bad, self.split = source.n_bad, source.split
        self.other_splits, self.split_was_named = source.other_splits, source.split_was_named

    def rows(self) -> Iterator[Row]:
        """Yield the kept rows in order."""
        yield from self._picked(self._source.rows())

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some of the kept rows by index."""
        numbers = [self.number(i) for i in range(start, stop)]
        if not numbers:
            return []
        rows = self._source.take(numbers[0], numbers[-1] + 1)
        return [rows[number - numbers[0]] for number in numbers]

    @property
    def base(self) -> Path:
        """The folder that relative paths in rows start from."""
        return self._source.base

    def where(self, index: int) -> str:
        """Return the location of a row in the given data for messages."""
        return self._source.where(self.number(index))

    def place(self, index: int) -> str:
        """Return the location of a row in the given data for reports."""
        return self._source.place(self.number(index))

    def columns(self, wanted: Iterable[str] = ()) -> dict[str, list[Any]]:
        """Return the names of the columns with the values of the first rows of the given data."""
        return self._source.columns(wanted)

    def labels(self, column: str) -> Iterator[Any] | None:
        """Yield a column of every kept row without building inputs; None if not cheaper."""
        every = self._source.labels(column)
        return None if every is None else self._picked(every)

    def names_of(self, column: str) -> Sequence[str] | None:
        """Return the class names behind the integers of a label column, or None."""
        return self._source.names_of(column)

    def number(self, index: int) -> int:
        """Return the number of a kept row in the given data."""
        n = len(self._kept)
        return int(self._kept[index]) if index < n else self._n_first + index - n

    def _picked(self, values: Iterable[Any]) -> Iterator[Any]:
        kept = {*self._kept.tolist()}
        for i, value in enumerate(values):
            if i in kept or i >= self._n_first:
                yield value


def _each(rows: Any) -> Iterable[Any]:
    return rows.rows() if isinstance(rows, Source) else rows


def _chosen(rows: Any, kept: Int[np.ndarray, "row"]) -> list[Any]:
    """Return the rows with these sorted indices."""
    wanted = {*kept.tolist()}
    return [row for i, row in enumerate(islice(_each(rows), int(kept[-1]) + 1)) if i in wanted]


def _keys(row: Any, base: Path) -> tuple[bytes, bytes]:
    """Return the hashes of a row without and with its id."""
    if not isinstance(row, Mapping):
        content = _content(row, base)
        return content, content
    named: Mapping[Any, Any] = row
    content = _content({k: v for k, v in named.items() if k != ID}, base)
    return content, content + _content(named.get(ID), base)


def _content(value: Any, base: Path) -> bytes:
    """Return a hash of a value's type and content."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        return tensor_key(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        head = f"{value.dtype}|{value.shape}|".encode()
        return _hash(head + np.ascontiguousarray(value).tobytes())
    if isinstance(value, Mapping):
        parts = [
            _content([k, v], base) for k, v in sorted(value.items(), key=lambda kv: str(kv[0]))
        ]
        return _hash(b"{" + b"".join(parts))
    if isinstance(value, list | tuple | np.ndarray):
        return _hash(b"[" + b"".join(_content(v, base) for v in value))
    if isinstance(value, str | Path):
        path = base / value if _is_file_name(value) else None
        if path is not None and path.is_file():
            return _hash(b"file" + path.read_bytes())
        return _hash(b"text" + str(value).encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return _hash(b"bytes" + value)
    if hasattr(value, "getexif"):
        return _hash(f"{value.mode}|{value.size}|".encode() + value.tobytes())
    if value is None or isinstance(value, bool | int | float | np.generic):
        return _hash(f"{kind}|{value!r}".encode())
    raise _UnknownValue(kind)


def _is_file_name(value: str | Path) -> bool:
    text = str(value)
    return len(text) < 1000 and Path(text).suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _by_chance(rows: Sequence[Any], n: int) -> bool:
    """Return whether different rows have so few values that some are equal by chance."""
    if len(rows) < 2:
        return False
    counts = dict[str, Counter[Any]]()
    for row in rows:
        for name, value in _cells(row):
            counts.setdefault(name, Counter())[value] += 1
    pairs = len(rows) * (len(rows) - 1)
    chance = 0.0
    for counted in counts.values():
        equal = sum(k * (k - 1) for k in counted.values()) / pairs
        if equal == 0:
            return False
        chance += math.log(equal)
    return n * (n - 1) / 2 * math.exp(chance) >= BY_CHANCE


def _cells(row: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of a row by name: columns, and some numbers of each array."""
    for name, value in (row if isinstance(row, Mapping) else {"": row}).items():
        if isinstance(value, torch.Tensor | np.ndarray):
            flat = torch.as_tensor(value).flatten()
            for i in range(0, len(flat), max(1, len(flat) // SOME_UNITS)):
                yield f"{name} {i}", float(flat[i])
        elif name != ID:
            yield str(name), value if isinstance(value, str | bool | int | float) else repr(value)
