"""Rows on disk as a stream, with the original live stream's batches bit for bit."""

import fnmatch
import itertools
import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SiteError, StoreError, near
from sonde.core.plan import UNIT_SIZE
from sonde.core.site import POSITIONS, Reducer, Site
from sonde.core.stream import Stream
from sonde.files.lock import holder_of
from sonde.files.places import to_path
from sonde.store._columns import CHOSEN
from sonde.store._identity import (
    appended,
    is_of_arrays,
    joined_identity,
    names_rows,
    only_sites,
)
from sonde.store._mapped import DAMAGE, MappedFile, OpenFiles
from sonde.store._subset import with_examples
from sonde.store.column import TORCH_TYPES, SiteColumn
from sonde.store.dataset import DataSet, class_names, common_schema
from sonde.store.in_order import InOrder, RowOrder
from sonde.store.layout import AGAIN, DATA, EXAMPLES, REPAIR, ROWS, record_file, row_file
from sonde.store.ray_rows import ray_rows
from sonde.store.row_batches import RowBatches
from sonde.store.volume import Span, Volume

FILES_OPEN = 256


@dataclass(frozen=True)
class _Place:
    """File of a record batch, and its index there."""

    volume: Volume
    table: str
    span: Span
    number: int
    column: str

    @property
    def path(self) -> Path:
        """The file."""
        return row_file(self.volume.directory, self.table, self.span)


class Shelf:
    """The rows of one site over all files of a store.

    Parameters
    ----------
    volumes : list of Volume
        One for each data set, in order.
    key : str
    ranks : sequence of array or None
        For each data set, the place of each planned example in the data; None if both are equal.
    """

    def __init__(self, volumes: list[Volume], key: str, ranks: Sequence[np.ndarray | None]) -> None:
        self._schema, places, counts = _listed(volumes, key)
        self._places = places
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = self._ends - np.asarray(counts, dtype=np.int64)
        numbers: dict[Path, int] = {}
        file_numbers = [numbers.setdefault(p.path, len(numbers)) for p in places]
        self._file_of = np.asarray(file_numbers, dtype=np.int64)
        self._places_of = dict(zip(file_numbers, places, strict=True))
        self._starts: np.ndarray = np.full(len(places), -1, dtype=np.int64)
        self._open, self._lock = OpenFiles(FILES_OPEN), threading.Lock()
        tables = [(v, table) for v in volumes for table, _ in _columns(v, key)]
        self._order = RowOrder(tables, ranks)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: Any) -> Float[Tensor, "_row _dim"]:
        """Return rows of the data in the requested order."""
        index = self._order.stored(self._checked(rows))
        dim, kind = self._schema.dim, TORCH_TYPES[self._schema.dtype]
        out = torch.empty(len(index), dim, dtype=kind)
        target = out.view(torch.uint16).numpy() if kind == torch.bfloat16 else out.numpy()
        chunk = np.searchsorted(self._ends, index, side="right")
        files = self._file_of[chunk]
        columns = np.arange(dim)
        for number in np.unique(files).tolist():
            here = np.flatnonzero(files == number)
            elements = self._opened(number)
            start = self._starts[chunk[here]] + (index[here] - self._firsts[chunk[here]]) * dim
            at = start * kind.itemsize
            self._file(number).load(at.tolist(), (at + dim * kind.itemsize).tolist())
            target[here] = elements[start[:, None] + columns]
        return out

    def who(self, rows: Any) -> list[tuple[str, int, int]]:
        """Return (key as hexadecimal digits, occurrence, position) of rows of the data."""
        index = self._order.stored(self._checked(rows))
        owners = []
        for row, chunk in zip(index, np.searchsorted(self._ends, index, "right"), strict=True):
            file, at = self._file(int(self._file_of[chunk])), int(row - self._firsts[chunk])
            try:
                part = file.batch(self._places[chunk].number)
                columns_read = [part.column(n) for n in ("example", "occurrence", "position")]
                file.load_columns(columns_read)
                example, occurrence, position = (column[at].as_py() for column in columns_read)
                owners.append((bytes.hex(example), int(occurrence), int(position)))
            except DAMAGE as error:
                raise _damaged(file, error) from error
        return owners

    def _checked(self, rows: Any) -> np.ndarray:
        index = np.atleast_1d(np.asarray(rows))
        whole = index.size == 0 or np.issubdtype(index.dtype, np.integer)
        if index.ndim != 1 or not whole:
            raise InputError(
                f"Store.take: expected whole numbers in one dimension, the numbers of rows, got "
                f"{index.dtype} of shape {index.shape}."
            )
        index = index.astype(np.int64)
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise InputError(
                f"Store.take: expected rows from 0 to {len(self) - 1}, got "
                f"{int(index.min())} to {int(index.max())}."
            )
        return index

    def _file(self, number: int) -> MappedFile:
        place = self._places_of[number]
        return self._open.get(
            place.path, lambda: place.volume.opened(place.table, place.span, sparse=True)
        )

    def _opened(self, number: int) -> np.ndarray:
        """Return the elements of a file, after finding the start of its record batches."""
        file = self._file(number)
        here = np.flatnonzero(self._file_of == number)
        with self._lock:  # another thread must not see the starts of some batches alone
            if self._starts[here[0]] < 0:
                try:
                    self._starts[here] = [self._start(file, chunk) for chunk in here.tolist()]
                except DAMAGE as error:
                    raise _damaged(file, error) from error
        return file.elements(self._schema.dtype)

    def _start(self, file: MappedFile, chunk: int) -> int:
        """Return the index of the first element of a record batch."""
        place, width = self._places[chunk], TORCH_TYPES[self._schema.dtype].itemsize
        column = file.batch(place.number).column(place.column)
        count = int(self._ends[chunk] - self._firsts[chunk])
        if len(column) != count or column.type.list_size != self._schema.dim:
            raise ValueError("a record batch has another number of rows")
        return file.start(column.flatten(), width) // width


def _damaged(file: MappedFile, error: Exception) -> StoreError:
    return StoreError(f"Store: {file.path} is damaged: {error}. {REPAIR}")


def _listed(volumes: list[Volume], key: str) -> tuple[SiteSchema, list[_Place], list[int]]:
    """Return a kind of rows, the files of its record batches, and its number of rows."""
    places: list[_Place] = []
    counts: list[int] = []
    schemas: list[SiteSchema] = []
    for volume in volumes:
        for table, column in _columns(volume, key):
            schemas.append(column.schema)
            for span in volume.manifest.ranges():
                path = row_file(volume.directory, table, span)
                try:
                    rows = [int(n) for n in volume.record(span)["files"][table]["rows"]]
                except (LookupError, TypeError, ValueError) as error:
                    raise StoreError(f"Store: the record of {path} is damaged. {AGAIN}") from error
                for number, n in enumerate(rows):
                    if n > 0:
                        places.append(_Place(volume, table, span, number, column.name))
                        counts.append(n)
    return schemas[0], places, counts


def _columns(volume: Volume, key: str) -> list[tuple[str, SiteColumn]]:
    tables = volume.manifest.tables.items()
    return [(table, c) for table, columns in tables for c in columns if c.schema.key == key]


SHOWN = 6
_OF_A_MODEL = re.compile(r"^(blocks|logits|(.*\.)?-\d+(\..*)?)$")
_WILD = frozenset("*?[")


class Store(Stream):
    """The rows in a folder that ``write_store`` has written.

    Parameters
    ----------
    directory : path
        Folder of the store.
    keys : iterable of str or None, default=None
        The kinds of rows to read; None is all.
    checked : bool, default=False
        Check the bytes of each file when ``batches`` opens it, as every command does. The check is
        quick beside a fit, but takes longer than reading alone.

    Raises
    ------
    StoreError
        If the folder is not a store, is damaged, or is not written to the end.
    """

    def __init__(
        self, directory: str | Path, keys: Iterable[str] | None = None, checked: bool = False
    ) -> None:
        self.directory, self.checked = to_path(directory).absolute(), checked
        first = DataSet(self.directory, checked)
        self.manifest = first.manifest
        further = [self.directory / DATA / str(k + 1) for k in range(self.manifest.n_data)]
        self._sets = (first, *(DataSet(folder, checked) for folder in further))
        self.seed = self.manifest.seed
        self._check_whole()
        self._keys = None if keys is None else frozenset(keys)
        self._starts = list(itertools.accumulate((len(s) for s in self._sets), initial=0))

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.directory, self._keys, self.checked)

    def _check_whole(self) -> None:
        spans = self.manifest.ranges()
        missing = self._sets[0].missing()
        if missing:
            first = record_file(self.directory, missing[0])
            raise StoreError(
                f"Store: {self.directory} is not complete: {len(missing)} of {len(spans)} "
                f"ranges of units are missing, the first is {first.name}. {self._advice()}"
            )
        for part in self._sets[1:]:
            if part.missing():
                raise StoreError(
                    f"Store: {part.directory} lacks ranges of units that were committed. Run "
                    "the command that added this data set again."
                )

    def _advice(self) -> str:
        holder = holder_of(self.directory)
        if holder is None:
            return "Run the command that wrote this store again."
        return f"Process {holder.pid} on {holder.host} is writing it: wait for it."

    def check_files(self) -> None:
        """Raise if a file of a store is missing or its size is wrong.

        Raises
        ------
        StoreError
            If a file is missing or has another size; the message names the first.
        """
        for part in self._sets:
            part.check_files()

    @cached_property
    def _every(self) -> tuple[SiteSchema, ...]:
        """Kinds of rows in every data set."""
        return common_schema(self._sets)

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows, in order of execution."""
        return tuple(s for s in self._every if self._keys is None or s.key in self._keys)

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example."""
        return self._group_keys

    @cached_property
    def _group_keys(self) -> tuple[bytes, ...]:
        return tuple(itertools.chain.from_iterable(s.manifest.group_keys for s in self._sets))

    @property
    def source_rows(self) -> Int[np.ndarray, "_example"] | None:
        """Index of the data item of each example, or None if data were appended."""
        return self.manifest.source_rows if len(self._sets) == 1 else None

    @cached_property
    def data_order(self) -> Int[np.ndarray, "_example"] | None:
        """The planned number of each example in the order of the data; None if both are equal."""
        ranks = self._ranks
        if all(rank is None for rank in ranks):
            return None
        parts = zip(self._sets, self._starts, ranks, strict=False)
        orders = [
            start + (np.arange(len(part)) if rank is None else np.argsort(rank))
            for part, start, rank in parts
        ]
        return np.concatenate(orders)

    @cached_property
    def _ranks(self) -> list[Int[np.ndarray, "_example"] | None]:
        """For each data set, the place of each planned example in the data, if they differ."""
        return [_rank(part.manifest.source_rows) for part in self._sets]

    def in_order(self) -> InOrder:
        """Return the rows in the order of the data.

        The store itself gives the batches that the model ran, which are sorted by length.
        """
        return InOrder(self, self.of_unit, self.data_order, self.n_bytes)

    @property
    def behaviour(self) -> dict[str, Any] | None:
        """States of a few drawn inputs, by which the model is recognised; None if unknown."""
        return self.manifest.behaviour

    @property
    def grouped(self) -> bool:
        """True if groups were given or examples were cut into chunks."""
        return any(s.manifest.grouped for s in self._sets)

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """The key and occurrence of each row of plain arrays, if an example has several rows."""
        parts = [s.manifest.identity for s in self._sets]
        if not all(is_of_arrays(part) and names_rows(part) for part in parts):
            return None
        keys, numbers = self.told("key"), self.told("occurrence")
        pairs = [(keys[i], numbers[i]) for i in sorted(keys)]
        return pairs if len(set(pairs)) < len(pairs) else None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number, the same over all data sets."""
        return class_names(self._sets)

    @property
    def own_labels(self) -> bool:
        """True if class numbers are those of the model in all data sets."""
        return all(part.manifest.own_labels for part in self._sets)

    @property
    def labels_number_outputs(self) -> bool:
        """True if the labels, in their order, name the outputs of a model without names."""
        return all(part.manifest.labels_number_outputs for part in self._sets)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the streams that wrote the store."""
        keys = [s.key for s in self.schema]
        return appended([only_sites(joined_identity(s.identities), keys) for s in self._sets])

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return the starts of the units, and the end.

        Raises
        ------
        InputError
            If ``unit_size`` is neither the default nor the size that the store was written with.
        """
        own = self.manifest.unit_size
        if unit_size not in (own, UNIT_SIZE):
            raise InputError(
                f"Store.units: expected the unit size of the store, {own} examples, got "
                f"{unit_size}. Leave out --unit-size, or read the model again with that size."
            )
        return self._bounds

    @cached_property
    def _bounds(self) -> list[int]:
        ends = [0]
        for part, start in zip(self._sets, self._starts, strict=False):
            ends += [start + bound for bound in part.manifest.bounds[1:]]
        return ends

    def select(
        self, sites: str | Site | Sequence[str | Site] = "auto", reducer: str | Reducer = "auto"
    ) -> "Store":
        """Return the store at some of its sites.

        Parameters
        ----------
        sites : str, Site or sequence, default="auto"
            Names, suffixes that name one site, or patterns such as ``layers.*.mlp``; ``|reducer``
            after a name takes only the rows of that reducer. "auto" is every site.
        reducer : str or Reducer, default="auto"

        Raises
        ------
        SiteError
            If a pattern names no site of the store, or is a suffix of several.
        """
        patterns = [sites] if isinstance(sites, str | Site) else list(sites)
        chosen = [s for s in self.schema if _is_of(s, reducer)]
        if not chosen:
            raise SiteError(
                f"Store.select: {self.directory} has no rows of the reducer {str(reducer)!r}, only "
                f"{', '.join(sorted({str(s.reducer) for s in self.schema}))}. Read the model again."
            )
        keys = [matching_keys(str(pattern), chosen, str(self.directory)) for pattern in patterns]
        return Store(self.directory, set().union(*keys), self.checked)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of one unit, or of several, as they were written.

        If a range is no unit of the store, only the examples inside it are taken from the batches.
        """
        bounds = self._bounds
        start, stop = max(0, start), min(stop, bounds[-1])
        first = bisect_right(bounds, start) - 1
        for unit in range(first, bisect_left(bounds, stop)):
            for batch in self._unit(unit):
                if bounds[unit] >= start and bounds[unit + 1] <= stop:
                    yield batch
                    continue
                inside = (batch.order >= start) & (batch.order < stop)
                if bool(inside.any()):
                    yield with_examples(batch, inside)

    def of_unit(
        self, unit: int, columns: Sequence[str] = ()
    ) -> Iterator[tuple[Batch, pa.RecordBatch | None]]:
        """Yield the batches of a unit as written, each with its table of examples.

        Parameters
        ----------
        unit : int
        columns : sequence of str
            Columns that this table must have; without any there is no table.
        """
        if not columns:
            yield from ((batch, None) for batch in self._unit(unit))
            return
        k, first = self._set_of(unit)
        tables = self._sets[k].volumes[0].tables_of(unit - first, (EXAMPLES,))
        for batch, (table,) in zip(self._unit(unit), tables, strict=True):
            yield batch, table

    def _unit(self, unit: int) -> Iterator[Batch]:
        k, first = self._set_of(unit)
        wanted = frozenset(s.key for s in self.schema)
        order = [s.key for s in self.schema]
        for batch in self._sets[k].batches(unit - first, wanted):
            rows = {key: batch.rows[key] for key in order}
            yield replace(batch, rows=rows, order=batch.order + self._starts[k])

    def _set_of(self, unit: int) -> tuple[int, int]:
        """Return the index of a unit's data set, and of this data set's first unit."""
        firsts = list(
            itertools.accumulate((len(s.manifest.bounds) - 1 for s in self._sets), initial=0)
        )
        k = bisect_right(firsts, unit) - 1
        return k, firsts[k]

    def __getitem__(self, index: Any) -> Any:
        """Raise: ``take`` returns rows by number, ``torch`` batches for training.

        Raises
        ------
        InputError
            With what to write for a ``DataLoader``.
        """
        raise InputError(
            "Store: a store has no items by number; take(rows) returns rows. For a DataLoader "
            "write: DataLoader(store.torch(batch_size=64, shuffle=4096), batch_size=None)."
        )

    def n_rows(self, key: str | None = None) -> int:
        """Return the number of rows of a site, by default the first site."""
        return len(self._shelf(key))

    def take(self, rows: Any, key: str | None = None) -> Float[Tensor, "_row _dim"]:
        """Return some rows of a site in the requested order, without reading other rows.

        Parameters
        ----------
        rows : sequence of int
            Numbers of rows, counted in the order of the data: with one row for each example,
            row ``i`` belongs to the ``i``-th item that was read.
        key : str or None, default=None
            The kind of rows (``SiteSchema.key``); the first if none is named.

        Raises
        ------
        InputError
            If there is no such row.
        SiteError
            If there is no such site.
        """
        return self._shelf(key).take(rows)

    def who(self, rows: Any, key: str | None = None) -> list[tuple[str, int, int]]:
        """Return (id, occurrence, position) of some rows of a site, counted as in ``take``."""
        return self._shelf(key).who(rows)

    def torch(
        self,
        key: str | None = None,
        *,
        batch_size: int = 1024,
        shuffle: int = 0,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Any:
        """Return the rows of a site as an ``IterableDataset``, for training on them.

        Every row comes once in an epoch, in one rank and one worker of a ``DataLoader``.

        Parameters
        ----------
        key : str or None, default=None
            The kind of rows (``SiteSchema.key``); the first if none is named.
        batch_size : int, default=1024
            Rows of a batch of one rank.
        shuffle : int, default=0
            Rows of a window: windows come in random order, and so do the rows of each. 0 keeps the
            order of the data.
        seed : int, default=0
            Seed of the order.
        rank : int or None, default=None
            Number of this process; None asks ``torch.distributed``, and is 0 without it.
        world_size : int or None, default=None
            Number of processes; None asks ``torch.distributed``, and is 1 without it.

        Returns
        -------
        RowBatches
            Batches ``{"x": rows, "row": their numbers}``, with ``set_epoch``, ``state_dict`` and
            ``load_state_dict``.
        """
        return RowBatches(self, key, batch_size, shuffle, seed, rank, world_size)

    def to_ray(self, key: str | None = None, *, batch_size: int = 1024) -> Any:
        """Return the rows of a site as a data set of Ray Data.

        Its columns are ``x``, the rows, and ``row``, their numbers in the order of the data. Rows
        are read where Ray runs, so the store must be seen there: in a bucket, or a shared folder.

        Parameters
        ----------
        key : str or None, default=None
            The kind of rows (``SiteSchema.key``); the first if none is named.
        batch_size : int, default=1024
            Rows that are read together.

        Returns
        -------
        ray.data.Dataset

        Raises
        ------
        InputError
            If Ray Data is not installed.
        """
        return ray_rows(self, key, self.n_rows(key), batch_size)

    def column(self, name: str | None) -> list[Any]:
        """Return the value of a data column for each example, in the planned order.

        An example that could not be read (``skip_bad``) has None.

        Parameters
        ----------
        name : str or None
            A column that was given to ``write_store``; None gives the examples' own keys.

        Raises
        ------
        InputError
            If there is no such column.
        """
        values = self.told("key" if name is None else self.held_name(name))
        return [values.get(i) for i in range(len(self))]

    def held_name(self, name: str) -> str:
        """Return the name under which the files hold a data column.

        Raises
        ------
        InputError
            If there is no such column.
        """
        for part in self._sets:
            names = part.manifest.columns
            if name not in names:
                raise InputError(
                    f"Store.column: {part.directory} has no column {name!r}.{near(name, names)} It "
                    f"has {', '.join(names) or 'none'}. Write it with --columns."
                )
        return CHOSEN + name

    def told(self, held: str) -> dict[int, Any]:
        """Return a column of the files of examples, by each stored example's planned number.

        Parameters
        ----------
        held : str
            Name of the column in these files.
        """
        return {
            start + number: value
            for part, start in zip(self._sets, self._starts, strict=False)
            for number, value in part.told(held).items()
        }

    def _shelf(self, key: str | None) -> Shelf:
        name = self.schema[0].key if key is None else key
        if name not in self._shelves:
            if name not in {s.key for s in self.schema}:
                keys = [s.key for s in self.schema]
                raise SiteError(f"Store: no site {name!r}.{near(name, keys)}")
            self._shelves[name] = Shelf([s.home(name) for s in self._sets], name, self._ranks)
        return self._shelves[name]

    @cached_property
    def _shelves(self) -> dict[str, Shelf]:
        return {}

    def verify(self) -> list[str]:
        """Return the faults in the files, after reading every byte; empty if there are none."""
        return [line for part in self._sets for line in part.verify()]

    @cached_property
    def n_bytes(self) -> int:
        """Total bytes of all row files."""
        return sum(p.stat().st_size for p in self.directory.rglob(f"{ROWS}/*/*.arrow"))


def _rank(source: Int[np.ndarray, "_example"] | None) -> Int[np.ndarray, "_example"] | None:
    """Return each example's place in the data, or None if examples are in that order."""
    if source is None or (source[1:] >= source[:-1]).all():
        return None
    return np.argsort(np.argsort(source, kind="stable"))


def _is_of(schema: SiteSchema, reducer: str | Reducer) -> bool:
    if isinstance(reducer, str):
        return reducer in ("auto", POSITIONS, str(schema.reducer), schema.reducer.name)
    return schema.reducer == reducer


def matching_keys(pattern: str, schema: Sequence[SiteSchema], store: str) -> set[str]:
    """Return the kinds of rows that match a pattern; full names take precedence over suffixes.

    Raises
    ------
    SiteError
        If it names no site of the store, or is a suffix of several without a wildcard.
    """
    path = pattern.partition("|")[0]
    matching = [s for s in schema if _names(pattern, path, s)]
    if not matching:
        matching = [s for s in schema if _names(pattern, f"*.{path}", s)]
        sites = dict.fromkeys(str(s.site) for s in matching)
        if len(sites) > 1 and _WILD.isdisjoint(path):
            raise SiteError(
                f"Store.select: {pattern!r} names {len(sites)} sites of {store}: "
                f"{_shown(sites)}. Give a longer part of the path."
            )
    if not matching:
        raise SiteError(_unknown(pattern, schema, store))
    return {s.key for s in matching}


def _names(pattern: str, path: str, schema: SiteSchema) -> bool:
    if pattern in ("auto", schema.key):
        return True
    reducer = pattern.partition("|")[2]
    if reducer and str(schema.reducer) != reducer:
        return False
    site = str(schema.site)
    forms = {site, site.removesuffix(":out"), schema.key.partition("|")[0]}
    return any(fnmatch.fnmatchcase(form, path) for form in forms)


def _unknown(pattern: str, schema: Sequence[SiteSchema], store: str) -> str:
    keys = [s.key for s in schema]
    advice = near(pattern, keys)
    if _OF_A_MODEL.match(pattern.partition("|")[0].partition(":")[0]):
        advice = (
            " A store does not know the model's modules: write the number or the name of a module."
        )
    return f"Store.select: {store} has no site {pattern!r}.{advice} It has {_shown(keys)}."


def _shown(names: Sequence[str] | dict[str, None]) -> str:
    return ", ".join([*names][:SHOWN]) + (" and more" if len(names) > SHOWN else "")
