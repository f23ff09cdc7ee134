"""Growing stores: further data after the first, and further sites for existing data.

Nothing that was written is written again. Each addition is a store of its own in a folder below,
and counts as soon as the manifest above it counts it.
"""

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import StoreError
from sonde.core.stream import Stream
from sonde.engine.classes import with_classes
from sonde.engine.derived import DerivedStream
from sonde.files.durable import atomic_write
from sonde.files.identity import which_rows
from sonde.files.lock import RunLock
from sonde.files.places import to_path
from sonde.store._columns import CHOSEN, chosen_column, fits, hash_of, kind_of, plain_values
from sonde.store._identity import (
    contradiction,
    data_of,
    describe_other_model,
    is_of_arrays,
    names_rows,
    number_columns,
    only_arrays,
    without_data,
    without_sites,
)
from sonde.store._subset import equal_examples
from sonde.store.dataset import DataSet, class_names, common_schema
from sonde.store.layout import DATA, MANIFEST, SITES, sealed
from sonde.store.manifest import Manifest, read_manifest
from sonde.store.writing import Fill, StoreWriter, Tick, fill


def append_store(
    stream: Stream,
    directory: str | Path,
    *,
    columns: Mapping[str, Any] | None = None,
    tick: Tick = lambda _: None,
    fill: Fill = fill,
) -> Path:
    """Append the rows of further data to a store.

    Examples that the store holds already count as further occurrences, as if all data had been
    read at once. Data that were appended before are not appended again.

    Parameters
    ----------
    stream : Stream
        The same model, sites and reading over other data.
    directory : path
        Folder of the store.
    columns : mapping of str to sequence, optional
        The columns that the store has, with a value for every example.
    tick : callable
        Called with the number of examples as they are read.
    fill : callable
        Function that writes the ranges; the bytes do not depend on who writes them.

    Raises
    ------
    StoreError
        If the store is unfinished, of another model or reading, or cannot be written.
    """
    directory = to_path(directory)
    with RunLock(directory):
        sets = _data_sets(directory)
        top, number = sets[0].manifest, _number_of(stream, sets)
        columns = {name: plain_values(values) for name, values in (columns or {}).items()}
        held = number < len(sets)
        schema = sets[number].volumes[0].schema if held else common_schema(sets)
        _require_same_kind(sets[0], schema, stream, columns)
        if held and not sets[number].volumes[0].to_write():
            _require_same_values(sets[number], columns)
            tick(len(stream))
            return directory
        source = with_classes(counted_on(stream, sets[:number]), class_names(sets))
        folder, keys = directory / DATA / f"{number}", [s.key for s in schema]
        writer = StoreWriter(source, folder, top.unit_size, columns, keys, top.columns)
        _continue(writer, "--append", tick, fill)
        if not held:
            _commit(directory, replace(top, n_data=number))
    return directory


def add_sites(
    stream: Stream,
    directory: str | Path,
    *,
    tick: Tick = lambda _: None,
    fill: Fill = fill,
) -> list[str]:
    """Add rows of further sites to one of a store's data sets.

    Sites that are there already are left as they are. If a store has several data sets, a site
    counts once all data sets have it.

    Parameters
    ----------
    stream : Stream
        The same model, data and reading at more sites.
    directory : path
        Folder of the store.
    tick : callable
        Called with the number of examples as they are read.
    fill : callable
        Function that writes the ranges; the bytes do not depend on who writes them.

    Returns
    -------
    list of str
        The kinds of rows that were added.

    Raises
    ------
    StoreError
        If the store is unfinished, of another model, data or reading, or cannot be written.
    """
    directory = to_path(directory)
    with RunLock(directory):
        sets = _data_sets(directory)
        number, here = _same_rows(stream, sets), {s.key for s in stream.schema}
        part = sets[number]
        source = with_classes(counted_on(stream, sets[:number]), class_names(sets))
        for volume in part.volumes[1:]:
            keys = [s.key for s in volume.schema]
            if volume.to_write() and here.issuperset(keys):
                _continue(_writer(source, part, volume.directory, keys), "--add-sites", tick, fill)
        keys = [s.key for s in stream.schema if s.key not in part.schema]
        if not keys:
            return []
        n_sites = part.manifest.n_sites + 1
        writer = _writer(source, part, part.directory / SITES / f"{n_sites}", keys)
        _continue(writer, "--add-sites", tick, fill)
        _commit(part.directory, replace(part.manifest, n_sites=n_sites))
    return keys


def _data_sets(directory: Path) -> list[DataSet]:
    """Return the data sets of a store whose first rows are complete."""
    first = DataSet(directory)
    missing = first.volumes[0].to_write()
    if missing:
        raise StoreError(
            f"write_store: {directory} is not complete: {len(missing)} ranges of units are "
            "missing. Run the command that wrote this store again before you add to it."
        )
    n = first.manifest.n_data
    return [first, *(DataSet(directory / DATA / f"{k + 1}") for k in range(n))]


def _writer(source: Stream, part: DataSet, folder: Path, keys: list[str]) -> StoreWriter:
    writer = StoreWriter(source, folder, part.manifest.unit_size, keys=keys)
    if writer.manifest.bounds != part.manifest.bounds:
        raise StoreError(f"add_sites: expected the units of {part.directory}, got other units.")
    return writer


def _commit(directory: Path, manifest: Manifest) -> None:
    atomic_write(directory / MANIFEST, sealed(manifest.json()))


def _continue(writer: StoreWriter, flag: str, tick: Tick, fill: Fill) -> None:
    """Write a store inside another, or finish it; raise if it holds other rows."""
    path = writer.directory / MANIFEST
    if path.exists() and read_manifest(writer.directory).plan != writer.manifest.plan:
        raise StoreError(
            f"write_store: an interrupted {flag} of other data or sites is in {writer.directory}. "
            f"Run that command again to finish it, or remove {writer.directory}."
        )
    writer.start()
    fill(writer, tick)


def _number_of(stream: Stream, sets: list[DataSet]) -> int:
    """Return the index of a stream's data set, or the next index for new data."""
    own = stream.identity()
    for number, part in enumerate(sets):
        held = part.identities[0]
        if which_rows(data_of(held)) == which_rows(data_of(only_arrays(own, held))):
            return number
    return len(sets)


def _same_rows(stream: Stream, sets: list[DataSet]) -> int:
    """Return the data set of a store that has a stream's rows at other sites."""
    identity = stream.identity()
    if not names_rows(identity):
        raise StoreError(
            "add_sites: rows of plain arrays are matched by their ids, got none. Give both "
            "sets of arrays the same ids, or write all arrays at once."
        )
    own = without_sites(identity)
    held = [without_sites(part.identities[0]) for part in sets]
    alike = [k for k, its in enumerate(held) if contradiction(its, own) is None]
    if len(alike) == 1:
        return alike[0]
    if not alike:
        raise StoreError(
            f"add_sites: {sets[0].directory} was written with another model, other data or "
            f"other options ({contradiction(held[0], own)} differs). Name the data that the "
            "store was read from."
        )
    raise StoreError(
        f"add_sites: {len(alike)} data sets of {sets[0].directory} have these ids. Write one "
        "store with all sites, and use a different id for each example."
    )


def _require_same_kind(
    first: DataSet,
    known: Iterable[SiteSchema],
    stream: Stream,
    columns: Mapping[str, Sequence[Any]],
) -> None:
    """Raise if a stream's rows differ in kind from the store's rows."""
    top, here = first.manifest, {s.key: s for s in stream.schema}
    own = without_data(without_sites(top.identity)) | {"seed": top.seed}
    its = without_data(without_sites(stream.identity())) | {"seed": stream.seed}
    what = contradiction(own, its) or _other_rows(known, here)
    if what is None and number_columns(top.identity) != number_columns(stream.identity()):
        named = ",".join(number_columns(top.identity) or ["none"])
        what = f"columns of numbers, or in another order: --number-columns {named}"
    if what is None and set(columns) != set(top.columns):
        what = "columns"
    if what is not None:
        apart = describe_other_model(its, own)
        raise StoreError(
            "append_store: expected rows of the same model and options as in "
            f"{first.directory}, got another {what if apart is None else f'model: {apart}'}. Read "
            "with the same options, or write to another path."
        )
    for name, kind in top.columns.items():
        if not fits(columns[name], kind):
            raise StoreError(
                f"append_store: the column {name!r} of {first.directory} contains {kind} "
                f"values, got {kind_of(columns[name])}. Leave out this data set, or write "
                "a new store of all data."
            )


def _require_same_values(part: DataSet, columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise if the columns of data that a store holds have other values there."""
    for name, kind in part.manifest.columns.items():
        given = chosen_column(name, columns[name], len(part), kind).to_pylist()
        held = part.told(CHOSEN + name)
        if hash_of([*held.values()]) != hash_of([given[i] for i in held]):
            raise StoreError(
                f"append_store: {part.directory} holds these data with other values of the column "
                f"{name!r}. Write a new store of all data."
            )


def _other_rows(schema: Iterable[SiteSchema], here: dict[str, SiteSchema]) -> str | None:
    for own in schema:
        its = here.get(own.key)
        if its is None or (own.dim, own.dtype, str(own.reducer)) != (
            its.dim,
            its.dtype,
            str(its.reducer),
        ):
            return own.key
    return None


def counted_on(stream: Stream, earlier: Sequence[DataSet]) -> Stream:
    """Return a stream that continues the occurrence counts of earlier data sets, by id.

    A derived stream that chooses rows by hash uses the later occurrences.
    """
    if not earlier:
        return stream
    if not isinstance(stream, DerivedStream):
        return LaterOccurrences(stream, earlier)
    wrapper = copy.copy(stream)
    wrapper.inner = counted_on(stream.inner, earlier)
    return wrapper


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
        for key, n in zip(equal_examples(batch, self._by_position), occurrence, strict=True):
            self._counts[key] = max(n + 1, self._counts.get(key, 0))

    def changed(self, batch: Batch) -> Batch:
        """Return a batch with continued occurrence counts."""
        earlier = [self._counts.get(key, 0) for key in equal_examples(batch, self._by_position)]
        added = torch.tensor(earlier, dtype=torch.int64)
        return replace(batch, occurrence=torch.as_tensor(batch.occurrence) + added)
