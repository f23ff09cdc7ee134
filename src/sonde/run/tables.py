"""Tables of scores as files."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from sonde.core.errors import InputError
from sonde.core.files import atomic_write

SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")


def check_suffix(path: Path) -> None:
    """Refuse a table's path whose suffix names no format.

    Raises
    ------
    InputError
        With the suffixes that do.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"write_table: expected a path that ends in .parquet, .csv, .json or .jsonl, got "
            f"{path.name}."
        )


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values; a number that is not finite is None."""
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write a table as Parquet, CSV, one JSON array or JSON lines, by the path's suffix.

    CSV has no lists: their members stand with blanks between them.
    JSON has no infinity: there a number that is not finite is null, also within a list.
    Parquet carries checksums; in the others a digit that changed is another digit.

    Raises
    ------
    InputError
        If the suffix is none of these.
    """
    path = Path(path)
    check_suffix(path)
    sink = io.BytesIO()
    if path.suffix == ".parquet":
        parquet.write_table(table, sink, write_page_checksum=True)
    elif path.suffix == ".csv":
        csv.write_csv(_flat(table), sink)
    else:
        lines = [json.dumps(row, allow_nan=False) for row in plain_rows(table)]
        if path.suffix == ".json":
            lines = ["[" + ",\n ".join(lines) + "]"]
        sink.write("".join(f"{line}\n" for line in lines).encode())
    atomic_write(path, sink.getvalue())


def json_lines(content: bytes) -> bytes:
    """Return JSON of rows as lines, where it is one array."""
    if not content.lstrip().startswith(b"["):
        return content
    return "".join(f"{json.dumps(row)}\n" for row in json.loads(content)).encode()


def _flat(table: pa.Table) -> pa.Table:
    """Return a table whose lists are texts."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            values = table[field.name].to_pylist()
            texts = [None if v is None else " ".join(map(str, v)) for v in values]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table
