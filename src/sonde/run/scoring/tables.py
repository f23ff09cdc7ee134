"""Tables of scores: written to files, read back and checked, and their columns."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, parquet
from pyarrow import json as arrow_json

from sonde.core.errors import InputError, no_file, reason_of
from sonde.core.wording import plural
from sonde.files.durable import atomic_write
from sonde.files.places import to_path

SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")
TINY = 1e-300
NEEDED = ("id", "site", "instrument", "score")


def check_suffix(path: Path, further: tuple[str, ...] = ()) -> None:
    """Raise if a path's suffix is neither a table format nor in ``further``.

    Raises
    ------
    InputError
        With the suffixes that are allowed.
    """
    if path.suffix not in SUFFIXES and path.suffix.lower() not in further:
        raise InputError(
            f"scores: expected a file that ends in {', '.join((*SUFFIXES, *further))}, got "
            f"{path.name}."
        )


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values; non-finite numbers become None."""
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write a table as Parquet, CSV, one JSON array or JSON lines, chosen by the path's suffix.

    CSV has no lists: their members stand with blanks between them.
    JSON has no infinity: there a number that is not finite is null, also within a list.
    Parquet carries checksums; the other formats cannot detect a changed digit.

    Raises
    ------
    InputError
        If the suffix is none of these.
    """
    path = to_path(path)
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


def _flat(table: pa.Table) -> pa.Table:
    """Return a table whose lists are written as text."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            values = table[field.name].to_pylist()
            texts = [None if v is None else " ".join(map(str, v)) for v in values]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table


def read_table(path: str | Path) -> pa.Table:
    """Read a table written by ``sonde score``; a null score belongs to a non-finite row.

    Raises
    ------
    InputError
        If the file is missing, of another kind, or lacks a column.
    """
    path = to_path(path)
    check_suffix(path)
    if not path.is_file():
        raise InputError(f"evaluate: {no_file(path)}. Check the path.")
    source = io.BytesIO(path.read_bytes())
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(source, page_checksum_verification=True)
        elif path.suffix == ".csv":
            plain = csv.ConvertOptions(null_values=[""])  # NaN is a wrong score, not a missing one
            table = csv.read_csv(source, convert_options=plain)
        else:
            table = arrow_json.read_json(io.BytesIO(_json_lines(source.getvalue())))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"evaluate: {path} is not a table of scores: {reason_of(error)}."
        ) from error
    return checked(table, str(path))


def checked(table: pa.Table, where: str) -> pa.Table:
    """Check a table of scores; return it with sites and instruments as text."""
    names = table.column_names
    missing = [name for name in NEEDED if name not in names]
    if missing or table.num_rows == 0:
        lacking = f" without {', '.join(missing)}" if missing else ""
        raise InputError(
            f"evaluate: expected rows with the columns {', '.join(NEEDED)} in {where}, got "
            f"{plural(table.num_rows, 'row')}{lacking}. Write the table with `sonde score --each`."
        )
    if twice := [name for name in (*NEEDED, "p") if names.count(name) > 1]:
        raise InputError(
            f"evaluate: expected each column once in {where}, got {', '.join(twice)} more than "
            "once. Rename or drop the copies."
        )
    _check_numbers(table, where)
    for name in ("site", "instrument"):
        if table[name].null_count:
            raise InputError(
                f"evaluate: expected a {name} in every row of {where}, got "
                f"{plural(table[name].null_count, 'row')} without a value. Write the table with "
                "`sonde score --each`."
            )
        table = table.set_column(names.index(name), name, table[name].cast(pa.string()))
    return table


def _check_numbers(table: pa.Table, where: str) -> None:
    """Raise if scores or p-values are not numbers, scores are NaN, or p is outside [0, 1]."""
    types: Any = pa.types
    for name in ("score", "p"):
        kind = table[name].type if name in table.column_names else pa.null()
        if not (types.is_floating(kind) or types.is_integer(kind) or types.is_null(kind)):
            raise InputError(
                f"evaluate: expected numbers as {name} in {where}, got {kind}, such as "
                f"{table[name][0].as_py()!r:.40}. Write the table with `sonde score --each`."
            )
    n_nan = sum(s is not None and math.isnan(s) for s in table["score"].to_pylist())
    if n_nan:
        raise InputError(
            f"evaluate: expected scores without NaN in {where}, got {n_nan} NaN. Score rows that "
            "are not finite as +inf."
        )
    if "p" in table.column_names:
        wrong = [p for p in table["p"].to_pylist() if p is not None and not 0 <= p <= 1]
        if wrong:
            raise InputError(
                f"evaluate: expected p-values in [0, 1] as p in {where}, got {wrong[0]}. Write the "
                "table with `sonde score --each`."
            )


def _json_lines(content: bytes) -> bytes:
    """Return JSON rows as JSON lines; a JSON array is converted."""
    if not content.lstrip().startswith(b"["):
        return content
    return "".join(f"{json.dumps(row)}\n" for row in json.loads(content)).encode()


def keys_of(table: pa.Table) -> list[tuple[str, str]]:
    """Return the instruments and sites of a table in order of first appearance."""
    pairs = zip(table["instrument"].to_pylist(), table["site"].to_pylist(), strict=True)
    return list(dict.fromkeys(pairs))


def part_of(table: pa.Table, key: tuple[str, str]) -> pa.Table:
    """Return the rows of one instrument and site."""
    pc: Any = compute
    is_part = pc.and_(pc.equal(table["instrument"], key[0]), pc.equal(table["site"], key[1]))
    return table.filter(is_part)


def scores_of(table: pa.Table) -> np.ndarray:
    """Return the scores of a table, with +inf for non-finite rows."""
    return np.array([math.inf if s is None else float(s) for s in table["score"].to_pylist()])


def beyond(scores: np.ndarray) -> np.ndarray:
    """Return ``(score - median) / (90 % quantile - median)``, comparable between detectors.

    Examples
    --------
    >>> beyond(np.array([0.0, 1.0, 2.0, float("inf")])).tolist()
    [-1.25, 0.0, 1.25, inf]
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return np.where(np.isfinite(scores), 0.0, scores)
    middle, high = np.quantile(finite, [0.5, 0.9])
    return (scores - middle) / max(high - middle, TINY)
