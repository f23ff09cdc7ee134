"""Checks of a store: hashes, counts, gaps, duplicates, and whether Arrow accepts every value."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError, StoreError, reason_of
from sonde.core.wording import plural
from sonde.files.durable import TEMPORARY
from sonde.files.places import Place, to_path
from sonde.store._columns import CHOSEN
from sonde.store.layout import (
    EXAMPLES,
    FORMAT,
    HEAD,
    MANIFEST,
    RANGES,
    ROWS,
    SITES,
    VERSION,
    is_sealed,
    read_json,
    side_file,
)
from sonde.store.manifest import Manifest, further_stores, read_manifest
from sonde.store.soundness import Fault, Soundness

_IDS = {
    EXAMPLES: ("id", "key", "group_key", "order", "occurrence", "label"),
    "": ("example", "occurrence", "position", "index", "label"),
}

Found = Iterator[tuple[str, str]]


Span = tuple[int, int]

_NAME = re.compile(r"^(\d{1,12})-(\d{1,12})\.(?:json|(?:\d{1,6}\.)?arrow)$")


def is_store(directory: Path) -> bool:
    """Return whether a folder is a store, or the remains of a store.

    Parameters
    ----------
    directory : Path
        Folder to ask about.
    """
    return (directory / MANIFEST).is_file() or (
        (directory / RANGES).is_dir() and (directory / ROWS).is_dir()
    )


def verify_store(directory: str | Path, tick: Callable[[int], None] = lambda _: None) -> Soundness:
    """Read every byte of a store, and return the faults.

    Memory does not grow with the store: record batches are checked one at a time.

    Parameters
    ----------
    directory : path
        Folder of the store.
    tick : callable
        Called with the number of examples after each range of units.

    Raises
    ------
    InputError
        If the folder is not a store.
    StoreError
        If a later version wrote it, or it cannot be read.
    """
    directory = to_path(directory)
    if not is_store(directory):
        raise InputError(f"verify: {directory} is not a store.")
    manifest, faults = _manifest(directory)
    checked = {"n_files": 1, "n_bytes": 0, "n_ranges": 0, "n_examples": 0, "n_rows": 0}
    spans = _written(directory) if manifest is None else manifest.ranges()
    missing: list[Span] = []
    for span in spans:
        if not _record(directory, span).exists():
            missing.append(span)
            continue
        check = _Range(directory, manifest, span)
        faults += check.faults()
        for name, n in check.checked.items():
            checked[name] += n
        tick(0 if manifest is None else manifest.bounds[span[1]] - manifest.bounds[span[0]])
    if missing:
        first = _record(directory, missing[0])
        text = f"{len(missing)} of {len(spans)} ranges of units are not written"
        faults.append(Fault(first, f"{text}, the first is {_words(missing[0])}"))
    notes = () if manifest is None else _left_out(manifest, checked["n_examples"], missing)
    strays = _strays(directory, manifest, faults)
    own = Soundness("store of rows", checked, tuple(faults), tuple(strays), notes)
    return own if manifest is None else _with_further(own, directory, manifest, tick)


def _with_further(
    own: Soundness, directory: Path, manifest: Manifest, tick: Callable[[int], None]
) -> Soundness:
    """Return the faults of a store, including the stores of further sites and data inside it."""
    sound = own
    sound.checked["n_files"] += len(manifest.files)
    for folder in further_stores(directory, manifest):
        if not is_store(folder):
            lost = Fault(folder, "the folder is missing or no store", (directory / MANIFEST,))
            sound = replace(sound, faults=(*sound.faults, lost))
            continue
        more = _counted_above(verify_store(folder, tick), folder, directory)
        again = {"n_examples"} if folder.parent.name == SITES else set[str]()
        sound = Soundness(
            sound.kind,
            {k: n + (0 if k in again else more.checked[k]) for k, n in sound.checked.items()},
            sound.faults + more.faults,
            tuple(dict.fromkeys(sound.leftovers + more.leftovers)),
            sound.notes + more.notes,
        )
    return sound


def _counted_above(found: Soundness, folder: Path, above: Path) -> Soundness:
    """Let each fault that removes this folder's manifest also remove the parent manifest."""
    faults = [
        replace(f, removes=(*f.removes, above / MANIFEST))
        if folder / MANIFEST in (f.path, *f.removes)
        else f
        for f in found.faults
    ]
    return replace(found, faults=tuple(faults))


def _manifest(directory: Path) -> tuple[Manifest | None, list[Fault]]:
    """Return the manifest or None, and the faults of the manifest and of the files it names."""
    path = directory / MANIFEST
    if not path.exists():
        return None, [Fault(path, "the manifest is missing")]
    try:
        raw = read_json(path)
    except StoreError:
        return None, [Fault(path, "the manifest is damaged: no JSON object", (path,))]
    version = raw.get("version")
    if raw.get("format") == FORMAT and type(version) is int and version > VERSION:
        raise StoreError(
            f"verify: {directory} was written by a later sonde (version {version} of the store; "
            f"this version knows {VERSION}). Install the version that wrote it."
        )
    if raw.get("format") != FORMAT and not (directory / RANGES).is_dir():
        raise InputError(f"verify: {path} is not the manifest of a store.")
    try:
        manifest = read_manifest(directory)
    except StoreError as error:
        return None, [Fault(path, f"the manifest is damaged: {_reason(error)}", (path,))]
    return manifest, _head(directory, manifest)


def _head(directory: Path, manifest: Manifest) -> list[Fault]:
    """Return the faults of the head's file, which is rewritten with the manifest."""
    path = directory / HEAD
    try:
        if HEAD in manifest.files:
            side_file(directory, HEAD, manifest.files)
    except StoreError:
        what = "its bytes differ from those that were committed"
        what = what if path.is_file() else "the file is missing"
        return [Fault(path, what, (directory / MANIFEST, path))]
    return []


def _reason(error: Exception) -> str:
    return str(error).rpartition("damaged: ")[2].rstrip(".")


def _record(directory: Path, span: Span) -> Path:
    return directory / RANGES / f"{span[0]}-{span[1]}.json"


def _words(span: Span) -> str:
    return f"units {span[0]} to {span[1] - 1}"


def _spans(folder: Path) -> list[Span]:
    names = (_NAME.match(path.name) for path in folder.glob("*"))
    return sorted({(int(m[1]), int(m[2])) for m in names if m is not None})


def _written(directory: Path) -> list[Span]:
    """Return the ranges with a record, for a store with an unreadable manifest."""
    return _spans(directory / RANGES)


def _left_out(manifest: Manifest, n_examples: int, missing: list[Span]) -> tuple[str, ...]:
    """Return a note on planned examples without a row in the committed ranges."""
    planned = manifest.bounds[-1] - sum(
        manifest.bounds[stop] - manifest.bounds[start] for start, stop in missing
    )
    n = planned - n_examples
    return (f"{n:,} planned examples have no row: they could not be read",) if n > 0 else ()


def _strays(directory: Path, manifest: Manifest | None, faults: list[Fault]) -> list[Path]:
    """Return leftovers of interrupted or replaced writes: temporary and unassigned files."""
    strays = [p for p in sorted(directory.rglob(f"*{TEMPORARY}*")) if p.is_file()]
    if manifest is None:
        return strays
    gone = {path for fault in faults for path in fault.removes}
    planned = set(manifest.ranges())
    for path in sorted([*directory.glob(f"{RANGES}/*"), *directory.glob(f"{ROWS}/*/*")]):
        match = _NAME.match(path.name)
        if match is None or path in gone:
            continue
        span = (int(match[1]), int(match[2]))
        if span not in planned or not _record(directory, span).exists():
            strays.append(path)
    return strays


class _Range:
    """The check of one committed range: its record, its files, their rows."""

    def __init__(self, directory: Path, manifest: Manifest | None, span: Span) -> None:
        self.directory, self.manifest, self.span = directory, manifest, span
        self.path = _record(directory, span)
        self.checked = {"n_files": 1, "n_bytes": 0, "n_ranges": 1, "n_examples": 0, "n_rows": 0}

    def faults(self) -> list[Fault]:
        """Return the faults of the range; a repair removes its record and files together."""
        files = [p for p in self.directory.glob(f"{ROWS}/*/{self.span[0]}-{self.span[1]}.*")]
        removes = (self.path, *(p for p in sorted(files) if _NAME.match(p.name)))
        try:
            pairs = list(self._found())
        except (OSError, pa.ArrowException, *_HOSTILE) as error:
            pairs = [(self.path, f"{_words(self.span)} cannot be read: {reason_of(error)}")]
        return [Fault(path, what, removes) for path, what in pairs]

    def _found(self) -> Iterator[tuple[Path, str]]:
        try:
            record = read_json(self.path)
        except StoreError:
            yield self.path, "the record is damaged: no JSON object"
            return
        if not is_sealed(self.path, record):
            yield self.path, "the record is damaged: the checksum does not match"
            return
        if self.manifest is not None and record.get("plan") != self.manifest.plan:
            yield self.path, "the record is of another plan"
            return
        files = record["files"]
        tables = set(files) if self.manifest is None else {EXAMPLES, *self.manifest.tables}
        if set(files) != tables or not all(str(name).isidentifier() for name in files):
            yield self.path, "the record names other tables than the manifest"
            return
        wrong = [w for name in sorted(files) for w in self._file(name, files[name])]
        yield from wrong
        if not wrong:
            yield from self._rows(record)

    def _arrow(self, table: str) -> Path:
        return self.directory / ROWS / table / f"{self.span[0]}-{self.span[1]}.arrow"

    def _file(self, table: str, said: dict[str, Any]) -> Iterator[tuple[Path, str]]:
        path = self._arrow(table)
        if not path.is_file():
            yield path, "the file is missing"
            return
        size = path.stat().st_size
        self.checked["n_files"] += 1
        self.checked["n_bytes"] += size
        if size != said["size_bytes"]:
            yield path, f"has {size:,} bytes, {said['size_bytes']:,} were committed"
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _hasher).hexdigest()
        if digest != said["blake2b"]:
            yield path, "its bytes differ from those that were committed"

    def _rows(self, record: dict[str, Any]) -> Iterator[tuple[Path, str]]:
        """Compare every value with manifest and record, after the hashes were checked."""
        readers = {name: pa.ipc.open_file(_source(self._arrow(name))) for name in record["files"]}
        for name, reader in readers.items():
            counts = record["files"][name]["rows"]
            if reader.num_record_batches != len(counts) or sum(record["batches"]) != len(counts):
                yield self._arrow(name), "holds another number of batches than its record says"
                return
            yield from (
                (self._arrow(name), w) for w in schema_faults(reader.schema, name, self.manifest)
            )
        seen: set[int] = set()
        units = [u for u, n in enumerate(record["batches"], self.span[0]) for _ in range(n)]
        for i, unit in enumerate(units):
            parts = {name: reader.get_batch(i) for name, reader in readers.items()}
            self.checked["n_examples"] += parts[EXAMPLES].num_rows
            self.checked["n_rows"] += sum(p.num_rows for n, p in parts.items() if n != EXAMPLES)
            n_rows_of = {name: record["files"][name]["rows"][i] for name in readers}
            for table, what in batch_faults(parts, n_rows_of, self.manifest, unit, seen):
                yield self._arrow(table), what


def _source(path: Path) -> Any:
    return path.open("rb") if isinstance(path, Place) else pa.memory_map(str(path))


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=16)


_HOSTILE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


def schema_faults(schema: pa.Schema, table: str, manifest: Manifest | None) -> Iterator[str]:
    """Yield the differences between a file's columns and the manifest's."""
    wanted = _IDS[EXAMPLES if table == EXAMPLES else ""]
    lacking = [name for name in wanted if schema.names.count(name) != 1]
    if lacking:
        yield f"lacks the columns {', '.join(lacking)}"
    for column in () if manifest is None else manifest.tables.get(table, ()):
        field = column.field()
        if schema.names.count(column.name) != 1:
            yield f"lacks the column {column.name} of {column.schema.key}"
            continue
        actual = schema.field(column.name)
        if actual.type != field.type:
            yield f"column {column.name} is {actual.type}, the manifest says {field.type}"
        elif (actual.metadata or {}).get(b"sonde.site") != column.schema.key.encode():
            yield f"column {column.name} is not of the site {column.schema.key}"


def batch_faults(
    parts: dict[str, pa.RecordBatch],
    said: dict[str, int],
    manifest: Manifest | None,
    unit: int,
    seen: set[int],
) -> Found:
    """Yield (table, fault) for a record batch of every table; add orders to ``seen``."""
    broken = False
    for name, part in parts.items():
        for what in _values(part, said[name]):
            broken = True
            yield name, what
    if broken:
        return
    yield from _orders(parts[EXAMPLES], manifest, unit, seen)
    for name, part in parts.items():
        if name != EXAMPLES:
            yield from ((name, what) for what in _aligned(part, parts[EXAMPLES]))


def _values(part: pa.RecordBatch, n_rows: int) -> Iterator[str]:
    try:
        part.validate(full=True)
    except pa.ArrowException as error:
        yield f"Arrow rejects it: {error}"
        return
    if part.num_rows != n_rows:
        yield f"a batch has {plural(part.num_rows, 'row')}, its record says {n_rows}"
    names = [name for name in part.schema.names if not name.startswith(CHOSEN)]
    nulls = [name for name in names if part.column(name).null_count]
    if nulls:
        yield f"has empty values in {', '.join(nulls)}"


def _orders(
    examples: pa.RecordBatch, manifest: Manifest | None, unit: int, seen: set[int]
) -> Found:
    """Check that every example occurs once, in its unit, with its planned group."""
    order = examples.column("order").to_pylist()
    twice = len(order) - len(set(order)) + len(seen & set(order))
    if twice:
        yield EXAMPLES, f"unit {unit} holds {plural(twice, 'example')} twice"
    seen |= set(order)
    if manifest is None:
        return
    low, high = manifest.bounds[unit], manifest.bounds[unit + 1]
    outside = [o for o in order if not low <= o < high]
    if outside:
        yield EXAMPLES, f"unit {unit} holds {plural(len(outside), 'example')} of other units"
        return
    groups = examples.column("group_key").to_pylist()
    if any(manifest.group_keys[o] != g for o, g in zip(order, groups, strict=True)):
        yield EXAMPLES, f"the groups of unit {unit} differ from those of the manifest"


def _aligned(part: pa.RecordBatch, examples: pa.RecordBatch) -> Iterator[str]:
    """Check that every row refers to an example, agrees with it, and occurs once."""
    index = np.asarray(part.column("index"))
    if len(index) and not 0 <= index.min() <= index.max() < examples.num_rows:
        yield "a row refers to an example that does not exist"
        return
    for name in ("occurrence", "label"):
        if not np.array_equal(np.asarray(part.column(name)), np.asarray(examples[name])[index]):
            yield f"the column {name} differs from that of the examples"
    names = ["index", "position", *(n for n in ("line", "column") if n in part.schema.names)]
    place = np.stack([np.asarray(part.column(name)) for name in names])
    if np.unique(place, axis=1).shape[1] < place.shape[1]:
        yield "rows stand there twice"
