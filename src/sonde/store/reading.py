"""Rows from disk as a stream: the same batches, bit for bit, as the live stream that wrote them."""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SiteError, StoreError, near
from sonde.core.plan import UNIT_SIZE
from sonde.core.site import POSITIONS, Reducer, Site
from sonde.core.stream import Stream
from sonde.files.lock import holder_of
from sonde.store._columns import CHOSEN
from sonde.store._identity import appended, joined_identity, only_sites
from sonde.store._select import matching_keys
from sonde.store._subset import with_examples
from sonde.store._take import Shelf
from sonde.store.dataset import DataSet, class_names, common_schema
from sonde.store.layout import DATA, ROWS


class Store(Stream):
    """The rows in a folder that ``write_store`` has filled.

    Parameters
    ----------
    directory : path
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
        self.directory, self.checked = Path(directory), checked
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
            raise StoreError(
                f"Store: {self.directory} is not written to the end: {len(missing)} of "
                f"{len(spans)} ranges of units are missing. {self._advice()}"
            )
        for part in self._sets[1:]:
            if part.missing():
                raise StoreError(
                    f"Store: {part.directory} lacks ranges of units that were committed. "
                    "Run the command that added it again."
                )

    def _advice(self) -> str:
        holder = holder_of(self.directory)
        if holder is None:
            return "Run the command that writes it again."
        return f"Process {holder.pid} on {holder.host} is writing it: wait for it."

    def check_files(self) -> None:
        """Refuse a store that lacks a file, or has one of another size.

        Raises
        ------
        StoreError
            If a file is missing or has another size; the message names the first.
        """
        for part in self._sets:
            part.check_files()

    @cached_property
    def _every(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows that every data set has."""
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
        """Which item of the data each example is, or None if data were appended."""
        return self.manifest.source_rows if len(self._sets) == 1 else None

    @property
    def grouped(self) -> bool:
        """Whether groups were given or examples were cut into chunks."""
        return any(s.manifest.grouped for s in self._sets)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number, the same over all data sets."""
        return class_names(self._sets)

    @property
    def own_labels(self) -> bool:
        """Whether class numbers are those of the model that was read, in all data sets."""
        return all(part.manifest.own_labels for part in self._sets)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the streams that wrote the store."""
        keys = [s.key for s in self.schema]
        return appended([only_sites(joined_identity(s.identities), keys) for s in self._sets])

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return where its units begin, and the end.

        Raises
        ------
        InputError
            If ``unit_size`` is neither the default nor the size that the store was written with.
        """
        own = self.manifest.unit_size
        if unit_size not in (own, UNIT_SIZE):
            raise InputError(
                f"Store.units: expected units of the store, {own} examples, got {unit_size}. Leave "
                "out --unit-size, or read the model again with that size."
            )
        return self._bounds

    @cached_property
    def _bounds(self) -> list[int]:
        found = [0]
        for part, start in zip(self._sets, self._starts, strict=False):
            found += [start + bound for bound in part.manifest.bounds[1:]]
        return found

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
        found = [matching_keys(str(pattern), chosen, str(self.directory)) for pattern in patterns]
        return Store(self.directory, set().union(*found), self.checked)

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

    def _unit(self, unit: int) -> Iterator[Batch]:
        k, first = self._set_of(unit)
        wanted = frozenset(s.key for s in self.schema)
        order = [s.key for s in self.schema]
        for batch in self._sets[k].batches(unit - first, wanted):
            rows = {key: batch.rows[key] for key in order}
            yield replace(batch, rows=rows, order=batch.order + self._starts[k])

    def _set_of(self, unit: int) -> tuple[int, int]:
        """Return the number of a unit's data set, and of the first unit in this data set."""
        firsts = list(
            itertools.accumulate((len(s.manifest.bounds) - 1 for s in self._sets), initial=0)
        )
        k = bisect_right(firsts, unit) - 1
        return k, firsts[k]

    def n_rows(self, key: str | None = None) -> int:
        """Return how many rows a site has; the first site if none is named."""
        return len(self._shelf(key))

    def take(self, rows: Any, key: str | None = None) -> Float[Tensor, "_row _dim"]:
        """Return some rows of a site, in the order asked for, without reading the others.

        Parameters
        ----------
        rows : sequence of int
            Numbers of rows, counted in the order in which they are stored.
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
        """Return (id, occurrence, position) of some rows of a site."""
        return self._shelf(key).who(rows)

    def column(self, name: str | None) -> list[Any]:
        """Return the value of a data column for each example, in the planned order.

        Parameters
        ----------
        name : str or None
            A column that was given to ``write_store``; None gives the examples' own keys.

        Raises
        ------
        InputError
            If there is no such column.
        """
        for part in self._sets:
            known = part.manifest.columns
            if name is not None and name not in known:
                raise InputError(
                    f"Store.column: {part.directory} has no column {name!r}.{near(name, known)} It "
                    f"has {', '.join(known) or 'none'}. Write it with --columns."
                )
        held = "key" if name is None else CHOSEN + name
        tables = (table for part in self._sets for table in part.volumes[0].examples())
        return [value for table in tables for value in table.column(held).to_pylist()]

    def _shelf(self, key: str | None) -> Shelf:
        name = self.schema[0].key if key is None else key
        if name not in self._shelves:
            if name not in {s.key for s in self.schema}:
                known = [s.key for s in self.schema]
                raise SiteError(f"Store: no site {name!r}.{near(name, known)}")
            self._shelves[name] = Shelf([s.home(name) for s in self._sets], name)
        return self._shelves[name]

    @cached_property
    def _shelves(self) -> dict[str, Shelf]:
        return {}

    def verify(self) -> list[str]:
        """Return what is wrong with the files, after reading every byte; empty when all is well."""
        return [line for part in self._sets for line in part.verify()]

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all its row files."""
        return sum(p.stat().st_size for p in self.directory.rglob(f"{ROWS}/*/*.arrow"))


def _is_of(schema: SiteSchema, reducer: str | Reducer) -> bool:
    if isinstance(reducer, str):
        return reducer in ("auto", POSITIONS, str(schema.reducer), schema.reducer.name)
    return schema.reducer == reducer
