"""What a store looks like on disk: its manifest, its tables, and how tensors become columns.

A store is a folder with ``store.json``, and for each committed range of units one file per table
under ``rows/`` and one record under ``ranges/``, written last. The table ``examples`` has a row for
each example; every other table holds the rows of the sites that share one layout.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.batch import SiteSchema
from sonde.core.errors import StoreError
from sonde.core.site import Reducer, Site

MANIFEST: Final = "store.json"
ROWS: Final = "rows"
RANGES: Final = "ranges"
EXAMPLES: Final = "examples"
FORMAT: Final = "sonde-store"
VERSION: Final = 1
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
    group_keys : tuple of bytes
    grouped : bool
    seed : int
    """

    plan: str
    bounds: tuple[int, ...]
    level: int
    identity: dict[str, Any]
    tables: dict[str, tuple[Column, ...]]
    group_keys: tuple[bytes, ...]
    grouped: bool
    seed: int

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
            "group_keys": [k.hex() for k in self.group_keys],
            "grouped": self.grouped,
            "seed": self.seed,
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


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a store, every value checked.

    Raises
    ------
    StoreError
        If the folder is no store, of another version, or damaged.
    """
    raw = read_json(directory / MANIFEST)
    if raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise StoreError(
            f"Store: expected a store of version {VERSION} at {directory}, got "
            f"{raw.get('format')!r} version {raw.get('version')!r}."
        )
    try:
        bounds = tuple(int(b) for b in raw["bounds"])
        if list(bounds) != sorted(set(bounds)) or bounds[:1] != (0,):
            raise ValueError("units are not in order")
        manifest = Manifest(
            plan=str(raw["plan"]),
            bounds=bounds,
            level=int(raw["level"]),
            identity=dict(raw["identity"]),
            tables={
                _plain(name): tuple(_column(c) for c in columns)
                for name, columns in raw["tables"].items()
            },
            group_keys=tuple(bytes.fromhex(k) for k in raw["group_keys"]),
            grouped=bool(raw["grouped"]),
            seed=int(raw["seed"]),
        )
        if len(manifest.group_keys) != bounds[-1] or not 0 <= manifest.level < 63:
            raise ValueError("group keys and units do not agree")
        _check_tables(manifest.tables)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"Store: the manifest of {directory} is damaged: {error}.") from error
    return manifest


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


def to_column(x: Tensor) -> pa.Array:
    """Return rows as an Arrow column, bit for bit; bfloat16 as its 16 bits."""
    x = x.detach().cpu().contiguous()
    name = str(x.dtype).removeprefix("torch.")
    flat = x.reshape(-1)
    values = flat.view(torch.uint16) if name == "bfloat16" else flat
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.numpy(), type=ARROW_TYPES[name]), x.shape[1]
    )


def from_column(column: pa.Array, dtype: str) -> Tensor:
    """Return the rows of an Arrow column."""
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=True)
    tensor = torch.from_numpy(np.array(values))
    if dtype == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.reshape(-1, width)
