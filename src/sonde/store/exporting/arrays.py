"""A store as arrays by site: ``.npz``, ``.safetensors``, or a folder of ``.npy`` files.

``sonde fit METHODS -`` reads the first two; NumPy can map the files of the folder.

Each array is written in one walk over the store, so vectors are never held together.
"""

import json
import math
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.columns import WHOLE_NUMBERS
from sonde.core.errors import InputError, StoreError
from sonde.files.durable import TEMPORARY, atomic_file, make_directory, sync_directory
from sonde.files.seal import BLANK, sealed_file
from sonde.store.exporting.facts import KEY, SEAL, facts_of, written
from sonde.store.exporting.parts import (
    ExportPart,
    column_names,
    names_of,
    parts_of,
    text_of,
)
from sonde.store.reading import Store

Tick = Callable[[int], None]
Pieces = Callable[[], Iterator[np.ndarray]]

_CODES = {"<f4": "F32", "<f8": "F64", "<f2": "F16", "<i8": "I64", "|u1": "U8"}
_BFLOAT16 = "BF16"
MAX_COMMENT = 65_535


@dataclass(frozen=True)
class Array:
    """An array and the source of its pieces.

    Parameters
    ----------
    name : str
    dtype : str
        NumPy's name of the type.
    shape : tuple of int
    pieces : callable
        Gives the pieces along the first axis, anew at each call.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Pieces

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Facts:
    """Properties of the columns that must be known before they are written."""

    n_rows: int
    id_width: int
    plain_ids: bool
    labelled: bool
    placed: bool


def write_npz(store: Store, path: Path, tick: Tick) -> int:
    """Write sites and columns as ``.npz`` and return the number of rows."""
    facts = _facts(store, tick, _characters)
    with (
        sealed_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,  # type: ignore[call-overload]
    ):
        for array in _arrays(store, facts, tick, native=False):
            entry = zipfile.ZipInfo(f"{array.name}.npy")
            with archive.open(entry, "w", force_zip64=True) as member:
                _write_array(member, array)
        archive.comment = _comment(facts_of(store, facts.n_rows))
    return facts.n_rows


def write_npy(store: Store, path: Path, tick: Tick) -> int:
    """Write sites and columns as a folder of ``.npy`` files and return the number of rows.

    Raises
    ------
    StoreError
        If the path exists already, or the disk is full.
    """
    if path.exists():
        raise StoreError(f"export: {path} exists. Remove it, or write to another path.")
    facts = _facts(store, tick, _characters)
    aside = path.with_name(f"{path.name}{TEMPORARY}{secrets.token_hex(6)}")
    make_directory(aside)
    try:
        for array in _arrays(store, facts, tick, native=False):
            with atomic_file(aside / f"{array.name}.npy") as file:
                _write_array(file, array)
        aside.replace(path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return facts.n_rows


def _write_array(file: Any, array: Array) -> None:
    head = {"descr": array.dtype, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_2_0(file, head)
    for piece in array.pieces():
        file.write(_raw(piece))


def write_safetensors(store: Store, path: Path, tick: Tick) -> int:
    """Write sites and columns as ``.safetensors`` in their dtypes; return the number of rows."""
    facts = _facts(store, tick, _utf8_bytes)
    arrays = sorted(
        _arrays(store, facts, tick, native=True), key=lambda a: -np.dtype(a.dtype).itemsize
    )
    names = array_names([s.key for s in store.schema])
    about = {**facts_of(store, facts.n_rows), "arrays": list(names.values())}
    head: dict[str, Any] = {"__metadata__": {KEY: written(about), SEAL: BLANK}}
    end = 0
    half = {names[s.key] for s in store.schema if s.dtype == "bfloat16"}
    for array in arrays:
        code = _BFLOAT16 if array.name in half else _CODES[np.dtype(array.dtype).str]
        offsets = [end, end + array.n_bytes]
        head[array.name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
        end += array.n_bytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with sealed_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            for piece in array.pieces():
                file.write(_raw(piece))
    return facts.n_rows


def _comment(facts: dict[str, Any]) -> bytes:
    """Return facts as a zip comment, which NumPy ignores; without sites if they are too long."""
    facts = {**facts, SEAL: BLANK}
    text = written(facts).encode()
    return text if len(text) <= MAX_COMMENT else written(facts | {"sites": []}).encode()


def _raw(piece: np.ndarray) -> memoryview:
    return np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data


def _characters(text: str) -> int:
    """Return the width of a text in an array of NumPy's own files."""
    return len(text)


def _utf8_bytes(text: str) -> int:
    """Return the width of a text where a format knows only numbers."""
    return len(text.encode())


def _facts(store: Store, tick: Tick, width: Callable[[str], int]) -> _Facts:
    n_rows = id_width = 0
    plain, labelled, placed = True, False, False
    key = store.schema[0].key
    for part in parts_of(store.select([key]), {}):
        batch = part.batch
        ids = _ids(batch)
        id_width = max([id_width, *map(width, ids)])
        plain = plain and all(i.encode() == bytes(k) for i, k in zip(ids, batch.keys, strict=True))
        labelled = labelled or bool((batch.label >= 0).any())
        placed = placed or bool((batch.position[key] != 0).any())
        n_rows += len(part)
        tick(0)
    return _Facts(n_rows, max(1, id_width), plain, labelled, placed)


def _arrays(store: Store, facts: _Facts, tick: Tick, native: bool) -> Iterator[Array]:
    """Yield the columns and the sites; ``native`` keeps bfloat16 as its 16 bits."""
    names = array_names([s.key for s in store.schema])
    n, key = facts.n_rows, store.schema[0].key
    one = store.select([key])
    if store.source_rows is not None:
        yield Array("row", "<i8", (n,), _of_parts(one, _items))
    # A dtype of text in NumPy's own files; rows of bytes where a format knows only numbers.
    ids = _texts(one, facts.id_width, native, _ids)
    yield Array("id", *_text_form(n, facts.id_width, native), ids)
    if not facts.plain_ids:
        yield from _key_array("key", one, n, lambda b: [bytes(k) for k in b.keys])
    if store.grouped:
        yield from _groups(one, n, native)
    if facts.placed:
        yield Array("position", "<i8", (n,), _walk(one, lambda b, _: b.position[key].numpy()))
    if facts.labelled:
        yield Array("label", "<i8", (n,), _walk(one, lambda b, e: b.label.numpy()[e]))
    if facts.labelled and store.label_names:
        yield _label_names(one, n, native)
    for schema in store.schema:
        yield _site(store, schema, names[schema.key], n, native, tick)


def array_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the name of each site's array: the site without ``:out``, as arrays are read back.

    Raises
    ------
    InputError
        If an array would get the name of a column.

    Examples
    --------
    >>> array_names(["layers.0:out", "layers.0:in", "h"])
    {'layers.0:out': 'layers.0', 'layers.0:in': 'layers_0_in', 'h': 'h'}
    """
    plain = {key: key.removesuffix(":out") for key in keys}
    names = {key: name for key, name in plain.items() if not set(name) & set(":|/\\")}
    names |= column_names([k for k in keys if k not in names], tuple(names.values()))
    for key, name in names.items():
        if name in RESERVED:
            raise InputError(
                f"export: the site {key!r} has the name of a column. Write Parquet instead."
            )
    return {key: names[key] for key in keys}


RESERVED = ("row", "id", "key", "group_key", "label", "label_name", *WHOLE_NUMBERS)


def _site(store: Store, schema: SiteSchema, name: str, n: int, native: bool, tick: Tick) -> Array:
    kind = {"float64": "<f8", "float16": "<f2"}.get(schema.dtype, "<f4")
    if native and schema.dtype == "bfloat16":
        kind = "<u2"

    def rows(batch: Batch, _: np.ndarray) -> np.ndarray:
        tick(len(batch) // max(1, len(store.schema)))
        return _numpy(batch.rows[schema.key], native)

    return Array(name, kind, (n, schema.dim), _walk(store.select([schema.key]), rows))


def _numpy(x: Tensor, native: bool) -> np.ndarray:
    if x.dtype != torch.bfloat16:
        return x.numpy()
    return x.contiguous().view(torch.uint16).numpy() if native else x.float().numpy()


def _walk(store: Store, take: Callable[[Batch, np.ndarray], np.ndarray]) -> Pieces:
    return _of_parts(store, lambda part: take(part.batch, part.example.numpy()))


def _of_parts(store: Store, take: Callable[[ExportPart], np.ndarray]) -> Pieces:
    def pieces() -> Iterator[np.ndarray]:
        for part in parts_of(store, {}):
            yield take(part)

    return pieces


def _items(part: ExportPart) -> np.ndarray:
    return np.asarray(part.item, dtype=np.int64)


def _ids(batch: Batch) -> list[str]:
    return [str(i) for i in batch.ids]


def _text_form(n: int, width: int, native: bool) -> tuple[str, tuple[int, ...]]:
    return ("|u1", (n, width)) if native else (f"<U{width}", (n,))


def _texts(store: Store, width: int, native: bool, of: Callable[[Batch], list[str]]) -> Pieces:
    """Return each row's text: as text, or as rows of zero-padded bytes of UTF-8."""

    def take(batch: Batch, example: np.ndarray) -> np.ndarray:
        if not native:
            return np.array(of(batch), dtype=f"<U{width}")[example]
        column = np.array([text.encode() for text in of(batch)], dtype=f"S{width}")[example]
        return column.view(np.uint8).reshape(-1, width)

    return _walk(store, take)


def _label_names(store: Store, n: int, native: bool) -> Array:
    """Return the name of each row's class; empty for no label."""
    width = max(1, *map(_utf8_bytes if native else _characters, store.label_names))

    def named(batch: Batch) -> list[str]:
        return [m or "" for m in names_of(batch.label.numpy(), store.label_names)]

    texts = _texts(store, width, native, named)
    return Array("label_name", *_text_form(n, width, native), texts)


def _key_array(
    name: str, store: Store, n: int, of: Callable[[Batch], list[bytes]]
) -> Iterator[Array]:
    """Yield keys as rows of bytes if their lengths are equal; otherwise, ids replace them."""
    lengths = {len(k) for part in parts_of(store, {}) for k in of(part.batch)}
    if len(lengths) == 1:
        width = lengths.pop()

        def take(batch: Batch, example: np.ndarray) -> np.ndarray:
            raw = np.frombuffer(b"".join(of(batch)), dtype=np.uint8)
            return raw.reshape(-1, width)[example]

        yield Array(name, "|u1", (n, width), _walk(store, take))


def _groups(store: Store, n: int, native: bool) -> Iterator[Array]:
    keys = [bytes(k) for k in store.group_keys]
    texts = [text_of(k) for k in keys]
    is_text = all(t.encode() == k for t, k in zip(texts, keys, strict=True))
    if is_text or len({len(k) for k in keys}) > 1:
        width = max(map(_utf8_bytes if native else _characters, texts), default=1)

        def named(batch: Batch) -> list[str]:
            return [text_of(bytes(k)) for k in batch.group_keys]

        yield Array("group", *_text_form(n, width, native), _texts(store, width, native, named))
        return
    yield from _key_array("group_key", store, n, lambda b: [bytes(k) for k in b.group_keys])
