"""Contents of an exported file of arrays or of a table, from its header only."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from sonde.core.errors import InputError, reason_of
from sonde.store.exporting.facts import KEY, TOLD, said
from sonde.store.exporting.to_lance import lance_module

MAX_HEADER_BYTES = 64 * 2**20


def describe_export(path: str | Path) -> dict[str, Any]:
    """Return the facts of a Parquet, ``.npz``, ``.safetensors`` or Lance file as JSON values.

    Raises
    ------
    InputError
        If the file is not of the kind that its ending says.
    """
    path = Path(path)
    look = {".parquet": _parquet, ".npz": _npz, ".safetensors": _safetensors, ".lance": _lance}
    try:
        return look[path.suffix.lower()](path)
    except InputError:
        raise
    except Exception as error:  # what is no such file fails in as many ways as there are readers
        raise InputError(
            f"info: {path} cannot be read as {path.suffix}: {reason_of(error)}."
        ) from error


def _parquet(path: Path) -> dict[str, Any]:
    metadata = parquet.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    return _table(schema, metadata.num_rows, path.stat().st_size)


def _lance(path: Path) -> dict[str, Any]:
    dataset = lance_module().dataset(str(path))
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    facts = _table(dataset.schema, dataset.count_rows(), size)
    indexed = [name for index in dataset.describe_indices() for name in index.field_names]
    return {**facts, "indexed": indexed}


def _table(schema: pa.Schema, n_rows: int, size: int) -> dict[str, Any]:
    about = said((schema.metadata or {}).get(KEY.encode(), b""))
    return {
        "kind": "table of rows of a store" if about else "table",
        "n_rows": n_rows,
        "columns": {field.name: str(field.type) for field in schema},
        **_told(about),
        "size_bytes": size,
    }


def _told(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in TOLD if name in found}


def _npz(path: Path) -> dict[str, Any]:
    arrays: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive:
        about = said(archive.comment)
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0
                read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            arrays[entry.filename.removesuffix(".npy")] = _shown(dtype.str.lstrip("<|="), shape)
    return {"kind": "arrays", "arrays": arrays, **_told(about), "size_bytes": path.stat().st_size}


def _safetensors(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise InputError(f"info: {path} is not a safetensors file.")
        head = json.loads(file.read(length))
    metadata = head.pop("__metadata__", {})
    about = said(metadata.get(KEY, ""))
    arrays = {name: _shown(e["dtype"], e["shape"]) for name, e in head.items()}
    return {"kind": "arrays", "arrays": arrays, **_told(about), "size_bytes": size}


def _shown(dtype: str, shape: Any) -> str:
    return f"{dtype} {' x '.join(f'{int(n):,}' for n in shape)}"
