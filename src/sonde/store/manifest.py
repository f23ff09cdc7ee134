"""The manifest of a store: its origin, its units and its tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from sonde.core.errors import StoreError
from sonde.store.column import SiteColumn, column_of, plain_name
from sonde.store.layout import (
    DATA,
    EXAMPLES,
    FORMAT,
    GROUPS,
    MANIFEST,
    SITES,
    VERSION,
    is_sealed,
    read_json,
    record_file,
    row_file,
    side_file,
)

MAX_FURTHER: Final = 100_000


@dataclass(frozen=True)
class Manifest:
    """Contents of a store: its origin, its units, and the sites of each table.

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
        One in this number of rows of tokens or patches was kept.
    files : dict of str to str
        Hashes of the files beside the manifest.
    source_rows : Int[np.ndarray, "example"] or None
        Which item of the data each example is, or is a piece of.
    label_names : tuple of str
        The name of each class number; empty if only the numbers are known.
    own_labels : bool, default=False
        Whether class numbers are those of the model.
    labels_number_outputs : bool, default=False
        Whether the labels, in their order, name the outputs of a model without names.
    behaviour : dict or None, default=None
        States of a few drawn inputs, by which the model is recognised.
    n_sites, n_data : int
        Numbers of whole stores of added sites, and of further data.
    """

    plan: str
    bounds: tuple[int, ...]
    level: int
    identity: dict[str, Any]
    tables: dict[str, tuple[SiteColumn, ...]]
    group_keys: Sequence[bytes]
    grouped: bool
    seed: int
    unit_size: int = 256
    columns: dict[str, str] = field(default_factory=dict[str, str])
    every: int = 1
    files: dict[str, str] = field(default_factory=dict[str, str])
    source_rows: Int[np.ndarray, "_example"] | None = None
    label_names: tuple[str, ...] = ()
    own_labels: bool = False
    labels_number_outputs: bool = False
    behaviour: dict[str, Any] | None = None
    n_sites: int = 0
    n_data: int = 0

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges of units of the files, in order."""
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
                name: [column.json() for column in columns] for name, columns in self.tables.items()
            },
            "grouped": self.grouped,
            "seed": self.seed,
            "unit_size": self.unit_size,
            "columns": self.columns,
            "every": self.every,
            "files": self.files,
            "label_names": list(self.label_names),
            "own_labels": self.own_labels,
            **({"labels_number_outputs": True} if self.labels_number_outputs else {}),
            "n_sites": self.n_sites,
            "n_data": self.n_data,
            **({} if self.behaviour is None else {"behaviour": self.behaviour}),
        }


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a store, after a check of every value.

    Raises
    ------
    StoreError
        If the folder is not a store, of another version, or damaged.
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
                plain_name(name): tuple(column_of(c) for c in columns)
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
            own_labels=bool(raw.get("own_labels", False)),
            labels_number_outputs=bool(raw.get("labels_number_outputs", False)),
            n_sites=_further(raw["n_sites"]),
            n_data=_further(raw["n_data"]),
            behaviour=None if raw.get("behaviour") is None else dict(raw["behaviour"]),
        )
        if len(manifest.group_keys) != bounds[-1] or not 0 <= manifest.level < 63:
            raise ValueError("group keys and units do not agree")
        if manifest.unit_size < 1 or manifest.every < 1:
            raise ValueError("a unit size or fraction of rows below 1")
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


def pack_groups(keys: Sequence[bytes], rows: Int[np.ndarray, "_example"] | None) -> bytes:
    """Return the file of group keys, and of each example's data item."""
    columns = {"group_key": pa.array([bytes(k) for k in keys], pa.large_binary())}
    table = pa.table(columns if rows is None else columns | {"row": pa.array(rows, pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _beside_examples(directory: Path, files: dict[str, Any]) -> pa.Table:
    table = pa.ipc.open_file(pa.py_buffer(side_file(directory, GROUPS, files))).read_all()
    table.validate(full=True)
    return table


def _source_rows(table: pa.Table) -> Int[np.ndarray, "_example"] | None:
    return table.column("row").to_numpy() if "row" in table.column_names else None


def is_whole(directory: Path, manifest: Manifest, span: tuple[int, int]) -> bool:
    """Return whether this plan committed a range, and its record and files still exist.

    Only the sizes of files are compared: wrong bytes are for ``verify_store`` to find.
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
    """Return the folders of further sites and data that the manifest lists."""
    sites = [directory / SITES / str(k) for k in range(1, manifest.n_sites + 1)]
    return sites + [directory / DATA / str(k) for k in range(1, manifest.n_data + 1)]


def _check_tables(tables: dict[str, tuple[SiteColumn, ...]]) -> None:
    """Raise if a site or column of a table occurs twice, or a table has no columns."""
    keys = [c.schema.key for columns in tables.values() for c in columns]
    names = [(table, c.name) for table, columns in tables.items() for c in columns]
    if EXAMPLES in tables or not all(tables.values()):
        raise ValueError("tables without sites")
    if not keys or len(set(keys)) < len(keys) or len(set(names)) < len(names):
        raise ValueError("sites that are named twice, or none")
