"""Batches as record batches of Arrow: examples with their columns, rows with their identity."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, StoreError
from sonde.core.wording import plural
from sonde.store.column import ARROW_TYPES, SiteColumn

EXTRA, CHOSEN = "extra_", "column_"
SHAPE = b"sonde.shape"
KINDS = {
    "bool": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
}


def to_column(x: Tensor) -> pa.Array:
    """Return rows as an Arrow column, bit for bit; bfloat16 as its 16 bits."""
    x = x.detach().cpu().contiguous()
    name = str(x.dtype).removeprefix("torch.")
    flat = x.reshape(-1)
    values = (flat.view(torch.uint16) if name == "bfloat16" else flat).numpy()
    kind = ARROW_TYPES.get(name) or pa.from_numpy_dtype(values.dtype)
    if not len(values):
        return pa.array([], pa.list_(kind, x.shape[1]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values, type=kind), x.shape[1])


def examples_of(batch: Batch, chosen: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Return a table with a row for each example of a batch, and the columns chosen by the user."""
    columns: dict[str, Any] = {
        "id": pa.array([str(i) for i in batch.ids], pa.string()),
        "key": pa.array([bytes(k) for k in batch.keys], pa.binary()),
        "group_key": pa.array([bytes(k) for k in batch.group_keys], pa.binary()),
        "order": _integers(batch.order, np.int64),
        "occurrence": _integers(batch.occurrence, np.int32),
        "label": _integers(batch.label, np.int64),
    }
    for name in ("pair", "side", "length"):
        values = getattr(batch, name)
        if values is not None:
            columns[name] = _integers(values, np.int64)
    if batch.logits is not None:
        columns["logits"] = to_column(batch.logits)
    fields = [pa.field(name, array.type) for name, array in columns.items()]
    arrays = list(columns.values())
    for name, values in batch.extra.items():
        arrays.append(_extra(values, name, len(batch)))
        meta = {SHAPE: ",".join(map(str, values.shape[1:])).encode()}
        fields.append(pa.field(EXTRA + name, arrays[-1].type, metadata=meta))
    for name, array in chosen.items():
        arrays.append(array)
        fields.append(pa.field(CHOSEN + name, array.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _extra(values: Tensor, name: str, n: int) -> pa.Array:
    fits = isinstance(values, Tensor) and values.ndim >= 1 and len(values) == n
    if not fits or values.is_complex() or values.is_sparse:
        raise StoreError(
            f"write_store: the column {name!r} cannot be stored: expected a number for each "
            "example, or arrays of the same shape."
        )
    if values.ndim == 1 and values.dtype != torch.bfloat16:
        return pa.array(values.detach().cpu().numpy())
    return to_column(values.reshape(n, -1))


def rows_of(batch: Batch, columns: Sequence[SiteColumn]) -> pa.RecordBatch:
    """Return the table of sites with one layout: rows with their example and position."""
    key = columns[0].schema.key
    example = batch.example[key]
    words = batch.column("ids", key).contiguous().numpy()
    arrays_of: dict[str, Any] = {
        "example": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(words), [None, pa.py_buffer(words.tobytes())]
        ),
        "occurrence": _integers(np.asarray(batch.occurrence)[example.numpy()], np.int32),
        "position": _integers(batch.position[key], np.int32),
        "index": _integers(example, np.int32),
        "label": _integers(batch.column("label", key), np.int64),
    }
    if key in batch.special:
        arrays_of["special"] = pa.array(batch.special[key].cpu().numpy().astype(bool))
    if key in batch.sink:
        arrays_of["sink"] = pa.array(batch.sink[key].cpu().numpy().astype(bool))
    if key in batch.grid:
        arrays_of["line"] = _integers(batch.grid[key][:, 0], np.int32)
        arrays_of["column"] = _integers(batch.grid[key][:, 1], np.int32)
    arrays = list(arrays_of.values())
    fields = [pa.field(name, array.type) for name, array in arrays_of.items()]
    for column in columns:
        arrays.append(to_column(batch.rows[column.schema.key]))
        fields.append(column.field())
        if column.schema.key in batch.grad:
            arrays.append(to_column(batch.grad[column.schema.key]))
            fields.append(pa.field(f"{column.name}_grad", arrays[-1].type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _integers(values: Any, kind: type[np.integer[Any]]) -> pa.Array:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return pa.array(np.ascontiguousarray(array.astype(kind)))


def plain_values(values: Any) -> list[Any]:
    """Return a column's values as those of Python, from a list, array, tensor or Arrow array.

    Bytes are read as UTF-8.

    Examples
    --------
    >>> plain_values(np.array([1, 2])), plain_values([np.float32(0.5), None, "a"])
    ([1, 2], [0.5, None, 'a'])
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_pylist()
    listed = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    return [_plain(v) for v in listed]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def hash_of(values: Sequence[Any]) -> str:
    """Return a hash of the plain values of a column.

    Examples
    --------
    >>> hash_of(["a", None]) == hash_of(["a", "None"])
    False
    """
    return blake2b(repr(list(values)).encode(), digest_size=16).hexdigest()


def kind_of(values: Sequence[Any]) -> str:
    """Return the kind of a chosen column: bool, integer, number or text; null fits any kind.

    Examples
    --------
    >>> kind_of([None, 1, 2.5]), kind_of(["a", 1]), kind_of([None])
    ('number', 'text', 'text')
    """
    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "integer"
    return "number" if kinds and kinds <= {int, float} else "text"


def label_text(value: Any, kind: str) -> str:
    """Return an access label of a column as text; a number without a fraction as whole.

    Examples
    --------
    >>> label_text(1.0, "number"), label_text(1, "number"), label_text("1.0", "text")
    ('1', '1', '1.0')
    """
    text = str(value)
    return re.sub(r"\.0+$", "", text) if kind in ("integer", "number") else text


def fits(values: Sequence[Any], kind: str) -> bool:
    """Return whether a column of a kind can hold these values without loss.

    Examples
    --------
    >>> fits([1, 2], "number"), fits([1.5], "integer"), fits([None], "bool")
    (True, False, True)
    """
    own = kind_of(values)
    empty = all(v is None for v in values)
    return empty or kind in (own, "text") or (own, kind) == ("integer", "number")


def chosen_column(name: str, values: Sequence[Any], n: int, kind: str) -> pa.Array:
    """Return a column chosen by the user, one value per example; mixed values become text.

    Raises
    ------
    InputError
        If there are not ``n`` values, or a whole number is too large.
    """
    if len(values) != n:
        raise InputError(
            f"write_store: expected {plural(n, 'value')} of {name!r}, got {len(values)}."
        )
    if kind == "text":
        values = [None if v is None else str(v) for v in values]
    try:
        return pa.array(values, KINDS[kind])
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InputError(f"write_store: the column {name!r} cannot be stored: {error}.") from error
