"""What a store looks like on disk: its manifest, its tables, and how tensors become columns.

A store is a folder with ``store.json``, and for each committed range of units one file per table
under ``rows/`` and one record under ``ranges/``, written last. The table ``examples`` has a row for
each example; every other table holds the rows of the sites that share one layout. Sites added later
are stores of their own below ``sites/``, further data sets below ``data/``; the manifest counts
those that are whole.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from sonde.core.batch import SiteSchema
from sonde.core.errors import StoreError
from sonde.core.site import Reducer, Site
from sonde.core.state import canonical_json

MANIFEST: Final = "store.json"
ROWS: Final = "rows"
RANGES: Final = "ranges"
EXAMPLES: Final = "examples"
GROUPS: Final = "groups.arrow"
HEAD: Final = "head.safetensors"
SITES: Final = "sites"
DATA: Final = "data"
MAX_FURTHER: Final = 100_000
FORMAT: Final = "sonde-store"
VERSION: Final = 1
AGAIN: Final = "Run the command that wrote it again."
MENDING: Final = "Run `sonde verify --repair` on the store, then the command that wrote it."
MAX_JSON_BYTES: Final = 64 * 2**20
MAX_WIDTH: Final = 1 << 24

ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
}
TORCH_TYPES: Final = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Column:
    """One site in a table."""

    name: str
    schema: SiteSchema

    def field(self) -> pa.Field:
        """Return the Arrow field; the site stands in its metadata."""
        kind = pa.list_(ARROW_TYPES[self.schema.dtype], self.schema.dim)
        meta = {"sonde.site": self.schema.key, "sonde.dtype": self.schema.dtype}
        return pa.field(self.name, kind, metadata=meta)


@dataclass(frozen=True)
class Manifest:
    """What a store holds: who made it, its units, and which sites are in which table.

    Parameters
    ----------
    plan : str
        Id of the plan by which it is written.
    bounds : tuple of int
        Where units begin, and the end.
    level : int
        A file holds an aligned range of ``2 ** level`` units.
    identity : dict
        What the stream said of model, reading and data.
    tables : dict of str to tuple of Column
    group_keys : sequence of bytes
        The group of every example; they stand in a file of their own, with ``source_rows``.
    grouped : bool
    seed : int
    unit_size : int
    columns : dict of str to str
        Columns of the data that the user chose, with their kinds.
    every : int
        One row of tokens or patches in so many was kept.
    files : dict of str to str
        Hashes of the files beside the manifest.
    source_rows : Int[np.ndarray, "example"] or None
        Which item of the data each example is, or is a piece of.
    label_names : tuple of str
        The name of each class number; empty where numbers are all that is known.
    n_sites, n_data : int
        Stores of more sites, and of further data, that are whole.
    """

    plan: str
    bounds: tuple[int, ...]
    level: int
    identity: dict[str, Any]
    tables: dict[str, tuple[Column, ...]]
    group_keys: Sequence[bytes]
    grouped: bool
    seed: int
    unit_size: int = 256
    columns: dict[str, str] = field(default_factory=dict[str, str])
    every: int = 1
    files: dict[str, str] = field(default_factory=dict[str, str])
    source_rows: Int[np.ndarray, "_example"] | None = None
    label_names: tuple[str, ...] = ()
    n_sites: int = 0
    n_data: int = 0

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges of units that files hold, in order."""
        n, step = len(self.bounds) - 1, 1 << self.level
        return [(k, min(k + step, n)) for k in range(0, n, step)]

    def json(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "plan": self.plan,
            "bounds": list(self.bounds),
            "level": self.level,
            "identity": self.identity,
            "tables": {
                name: [{"column": c.name, **_site_json(c.schema)} for c in columns]
                for name, columns in self.tables.items()
            },
            "grouped": self.grouped,
            "seed": self.seed,
            "unit_size": self.unit_size,
            "columns": self.columns,
            "every": self.every,
            "files": self.files,
            "label_names": list(self.label_names),
            "n_sites": self.n_sites,
            "n_data": self.n_data,
        }


def _site_json(schema: SiteSchema) -> dict[str, Any]:
    return {
        "key": schema.key,
        "site": str(schema.site),
        "order": schema.site.order,
        "reducer": schema.reducer.name,
        "axis": schema.reducer.axis,
        "keep_special": schema.reducer.keep_special,
        "dim": schema.dim,
        "dtype": schema.dtype,
        "module": schema.module,
        "axes": schema.axes,
        "prefix": schema.prefix,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that is not trusted.

    Raises
    ------
    StoreError
        If it is missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StoreError(f"Store: {path} is larger than {MAX_JSON_BYTES} bytes.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"Store: expected a JSON file at {path}: {error}.") from error
    if not isinstance(found, dict):
        raise StoreError(f"Store: expected a JSON object at {path}.")
    return found


def sealed(content: dict[str, Any]) -> bytes:
    """Return the one JSON text of a manifest or record, with a hash over everything else in it."""
    rest = {name: value for name, value in content.items() if name != "hash"}
    found = hashlib.blake2b(canonical_json(rest).encode(), digest_size=16).hexdigest()
    return (canonical_json({**rest, "hash": found}) + "\n").encode()


def is_sealed(path: Path, content: dict[str, Any]) -> bool:
    """Return whether a file still has every byte that was written; ``content`` is what it holds."""
    try:
        return path.read_bytes() == sealed(content)
    except ValueError:
        return False


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a store, every value checked.

    Raises
    ------
    StoreError
        If the folder is no store, of another version, or damaged.
    """
    raw = read_json(directory / MANIFEST)
    version = raw.get("version")
    if raw.get("format") != FORMAT or version != VERSION:
        later = raw.get("format") == FORMAT and type(version) is int and version > VERSION
        advice = " A later sonde wrote it: install that version to read it." if later else ""
        raise StoreError(
            f"Store: expected a store of version {VERSION} at {directory}, got "
            f"{raw.get('format')!r} version {version!r}.{advice}"
        )
    try:
        bounds = tuple(int(b) for b in raw["bounds"])
        if list(bounds) != sorted(set(bounds)) or bounds[:1] != (0,):
            raise ValueError("units are not in order")
        groups = _beside_examples(directory, raw["files"])
        manifest = Manifest(
            plan=str(raw["plan"]),
            bounds=bounds,
            level=int(raw["level"]),
            identity=dict(raw["identity"]),
            tables={
                _plain(name): tuple(_column(c) for c in columns)
                for name, columns in raw["tables"].items()
            },
            group_keys=tuple(groups.column("group_key").to_pylist()),
            source_rows=_source_rows(groups),
            grouped=bool(raw["grouped"]),
            seed=int(raw["seed"]),
            unit_size=int(raw["unit_size"]),
            columns={str(k): str(v) for k, v in raw["columns"].items()},
            every=int(raw["every"]),
            files={str(k): str(v) for k, v in raw["files"].items()},
            label_names=tuple(str(name) for name in raw.get("label_names", ())),
            n_sites=_further(raw["n_sites"]),
            n_data=_further(raw["n_data"]),
        )
        if len(manifest.group_keys) != bounds[-1] or not 0 <= manifest.level < 63:
            raise ValueError("group keys and units do not agree")
        if manifest.unit_size < 1 or manifest.every < 1:
            raise ValueError("a unit or share of rows below 1")
        _check_tables(manifest.tables)
        if not is_sealed(directory / MANIFEST, raw):
            raise ValueError("the checksum does not match")
    except StoreError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"Store: the manifest of {directory} is damaged: {error}.") from error
    return manifest


def _further(n: object) -> int:
    if type(n) is not int or not 0 <= n <= MAX_FURTHER:
        raise ValueError(f"{n!r} further stores")
    return n


def beside(directory: Path, name: str, files: dict[str, Any]) -> bytes:
    """Return the bytes of a file beside the manifest, which names their hash.

    Raises
    ------
    StoreError
        If the file is missing or has other bytes.
    """
    path = directory / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"Store: {path} is missing or cannot be read: {error}.") from error
    if hashlib.blake2b(content, digest_size=16).hexdigest() != files.get(name):
        raise StoreError(f"Store: the bytes of {path} are not those that were committed.")
    return content


def pack_groups(keys: Sequence[bytes], rows: Int[np.ndarray, "_example"] | None) -> bytes:
    """Return the file of group keys and of the items that examples are."""
    columns = {"group_key": pa.array([bytes(k) for k in keys], pa.large_binary())}
    table = pa.table(columns if rows is None else columns | {"row": pa.array(rows, pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _beside_examples(directory: Path, files: dict[str, Any]) -> pa.Table:
    table = pa.ipc.open_file(pa.py_buffer(beside(directory, GROUPS, files))).read_all()
    table.validate(full=True)
    return table


def _source_rows(table: pa.Table) -> Int[np.ndarray, "_example"] | None:
    return table.column("row").to_numpy() if "row" in table.column_names else None


def row_file(directory: Path, table: str, span: tuple[int, int]) -> Path:
    """Return the file of a table that holds a range of units."""
    return directory / ROWS / table / f"{span[0]}-{span[1]}.arrow"


def record_file(directory: Path, span: tuple[int, int]) -> Path:
    """Return the record that commits a range of units."""
    return directory / RANGES / f"{span[0]}-{span[1]}.json"


def is_whole(directory: Path, manifest: Manifest, span: tuple[int, int]) -> bool:
    """Return whether a range was committed by this plan, and record and files are still there.

    Files are known by their sizes: a byte that is wrong is for ``verify_store`` to find.
    """
    path = record_file(directory, span)
    try:
        record = read_json(path)
        for table in (EXAMPLES, *manifest.tables):
            size = row_file(directory, table, span).stat().st_size
            if record["files"][table]["size_bytes"] != size:
                return False
    except (OSError, LookupError, TypeError):
        return False
    return record.get("plan") == manifest.plan and is_sealed(path, record)


def further_stores(directory: Path, manifest: Manifest) -> list[Path]:
    """Return the folders of more sites and of further data that the manifest counts."""
    sites = [directory / SITES / str(k) for k in range(1, manifest.n_sites + 1)]
    return sites + [directory / DATA / str(k) for k in range(1, manifest.n_data + 1)]


def _check_tables(tables: dict[str, tuple[Column, ...]]) -> None:
    """Refuse a site, or a column of a table, that is named twice, and a table without columns."""
    keys = [c.schema.key for columns in tables.values() for c in columns]
    names = [(table, c.name) for table, columns in tables.items() for c in columns]
    if EXAMPLES in tables or not all(tables.values()):
        raise ValueError("tables without sites")
    if not keys or len(set(keys)) < len(keys) or len(set(names)) < len(names):
        raise ValueError("sites that are named twice, or none")


def _plain(name: str) -> str:
    """Return a table's name, which becomes a folder, if it is a plain word."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"table name {name!r}")
    return name


def _column(raw: dict[str, Any]) -> Column:
    dim = int(raw["dim"])
    if raw["dtype"] not in ARROW_TYPES or not 1 <= dim <= MAX_WIDTH:
        raise ValueError(f"a column of type {raw['dtype']!r} and width {dim}")
    found = Site.parse(raw["site"])
    site = Site(found.path, found.call, found.port, found.key, order=int(raw["order"]))
    reducer = Reducer(raw["reducer"], raw["axis"], bool(raw["keep_special"]))
    kind = (str(raw["dtype"]), str(raw["module"]), str(raw["axes"]), int(raw.get("prefix", 0)))
    schema = SiteSchema(str(raw["key"]), site, reducer, dim, *kind)
    return Column(_plain(raw["column"]), schema)
