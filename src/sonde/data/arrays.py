"""Arrays in ``.npy``, ``.npz`` and ``.safetensors`` files: a model's input, or features."""

import json
import logging
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sonde.core.columns import WHOLE_NUMBERS
from sonde.core.errors import InputError, SiteError, SondeWarning, near, no_file, reason_of
from sonde.core.stream import Stream
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural
from sonde.data.iterables import ArrayRows
from sonde.data.labels import LabelColumn
from sonde.data.limited import Kept, kept_items
from sonde.data.sources import Source
from sonde.files.seal import is_sealed

_log = logging.getLogger("sonde")

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
COLUMNS = ("label", "group", "group_key", "id", "key", "pair", "side")
BESIDE = ("row", "label_name")
"""Arrays that an export writes for people: the item's number in the data, the class's name."""
STEP_COLUMNS = tuple(name for name in WHOLE_NUMBERS if name not in COLUMNS)
LABELS = ("labels", "target", "class", "y")
NAMED = ("label", "group", "id", "pair", "side", *LABELS)
MAX_HEADER_BYTES = 64 * 2**20


def array_source(path: Path) -> Source:
    """Return a file of arrays as model input: array ``x``, or several of equal length by name.

    Raises
    ------
    InputError
        If there are no such arrays, or an array named as a column lacks a value for each row.
    """
    arrays = load_arrays(path)
    name = "x" if "x" in arrays else next(iter(arrays)) if path.suffix == ".npy" else None
    lengths = {len(v) if v.ndim else None for v in arrays.values()}
    if name is None and len(arrays) > 1 and len(lengths) == 1 and None not in lengths:
        return ArrayRows(arrays, path.name)
    if name is None:
        raise InputError(
            f"{path}: expected an array 'x' (a row for each item), got "
            f"{', '.join(arrays) or 'none'}. Rename it, or read the file as features (MODEL '-')."
        )
    x = arrays.pop(name)
    columns = {k: v for k, v in arrays.items() if v.ndim and v.shape[:1] == x.shape[:1]}
    plain = {k for k, v in columns.items() if v.ndim == 1 or k in ("label", *LABELS)}
    wrong = next((k for k in arrays if k in NAMED and k not in plain), None)
    if wrong is not None and x.ndim:
        raise InputError(
            f"{path}: expected a value for each of {plural(len(x), 'row')} in array {wrong!r}, "
            f"got the shape {tuple(arrays[wrong].shape)}. Fix it, or give it another name."
        )
    return ArrayRows({"x": x, **columns}, path.name)


def open_arrays(
    path: str | Path, seed: int = 0, *, limit: int | None = None, sites: Sequence[str] = ()
) -> Stream:
    """Return a file of feature arrays as a stream, one site per array; no model is needed.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz`` or ``.safetensors``; arrays ``label``, ``group``, ``id``, ``pair`` and
        ``side`` are columns, and ``position`` and ``first_error`` if they hold one whole number
        for each row. Rows of bytes are texts; ``key`` and ``group_key`` are hashed as they are.
    seed : int, default=0
        Key of the hash of rows.
    limit : int, optional
        Read this many rows: with labels a sample over the classes, else the first ones.
    sites : sequence of str, optional
        Names of arrays, or patterns such as ``layer*``; by default all.

    Raises
    ------
    InputError
        If the file cannot be read safely, or its arrays differ in their number of rows.
    SiteError
        If a pattern matches no array.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"open_arrays: {no_file(path)}.")
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(
            f"open_arrays: expected {', '.join(ARRAY_SUFFIXES)}, got {path}. Save its numbers in "
            "one of these formats, or pass a model that reads this file in place of '-'."
        )
    arrays = load_arrays(path)
    rows = {k: len(v) if v.ndim else "no" for k, v in arrays.items()}
    if len(set(rows.values())) > 1 or "no" in rows.values():
        raise InputError(
            f"open_arrays: expected the same number of rows in all arrays of {path}, got {rows}."
        )
    label = _label_name(arrays)
    kept = _kept(arrays, label, limit, seed)
    arrays = {k: v[kept.rows] if kept.rows is not None else v for k, v in arrays.items()}
    steps = {k: arrays[k] for k in STEP_COLUMNS if k in arrays and _is_whole(arrays[k])}
    beside = [k for k in BESIDE if k in arrays and _is_beside(arrays[k])]
    named = [k for k in arrays if k not in (*COLUMNS, *steps, *beside, label)]
    chosen = {k: _floats(k, arrays[k], path) for k in _matched(named, sites, path)}
    if not chosen:
        raise InputError(
            f"open_arrays: {path} contains no array except {', '.join(arrays) or 'none'}."
        )
    if not next(iter(rows.values())):
        raise InputError(f"open_arrays: {path} is empty: its arrays have no row.")
    n_rows = plural(len(next(iter(chosen.values()))), "row")
    _log.info("data %s: %s of %s", path, n_rows, ", ".join(chosen))
    stream = Stream.of(
        chosen,
        label=None if label is None else _labels(arrays[label], label, path),
        group=_bytes(arrays.get("group_key")) or texts_of(arrays.get("group")),
        ids=texts_of(arrays.get("id")),
        keys=_bytes(arrays.get("key")),
        pair=texts_of(arrays.get("pair")),
        side=arrays.get("side"),
        **steps,
        seed=seed,
    )
    return replace(stream, numbers=kept.rows, sample_of=kept.of)


def _kept(arrays: Mapping[str, Any], label: str | None, limit: int | None, seed: int) -> Kept:
    """Return the rows within a limit; without a limit all rows of the file."""
    whole = ArrayRows(arrays, "arrays")
    kept = kept_items(whole, None if "pair" in arrays else label, limit, seed)
    n = len(next(iter(arrays.values())))
    return kept if kept.rows is None else replace(kept, rows=kept.rows[kept.rows < n])


def _is_whole(values: Any) -> bool:
    return values.ndim == 1 and np.asarray(values).dtype.kind in "iu"


def _is_beside(values: Any) -> bool:
    """Return whether an array holds a whole number or a text for each row."""
    return (
        _is_whole(values) or getattr(values.dtype, "kind", "") in "SU" or _bytes(values) is not None
    )


def _label_name(arrays: dict[str, Any]) -> str | None:
    """Return ``label``, or a common label name whose array holds a class for each row."""
    names = [k for k in LABELS if k in arrays and _holds_classes(arrays[k])]
    return "label" if "label" in arrays else next(iter(names), None)


def _holds_classes(values: Any) -> bool:
    """Return whether an array holds an integer for each row, alone or as (n, 1), or is one-hot."""
    is_whole = "int" in str(values.dtype)
    if values.ndim != 2 or values.shape[1] == 1:
        return is_whole and values.ndim in (1, 2)
    is_number = is_whole or any(word in str(values.dtype) for word in ("float", "bool"))
    if not is_number or values.shape[1] == 0:
        return False
    rows = values.double() if isinstance(values, torch.Tensor) else np.asarray(values, "float64")
    rows = torch.as_tensor(rows)
    return bool((rows.count_nonzero(1) == 1).all() and (rows.max(1).values == 1).all())


def _matched(names: list[str], patterns: Sequence[str], path: Path) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SiteError(
                f"open_arrays: no array in {path} is called {pattern!r}.{near(pattern, names)} It "
                f"has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
            )
    return [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]


def load_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of a file without pickle, after checking the headers."""
    if is_sealed(path) is False:
        raise InputError(
            f"{path} is damaged: its bytes differ from those that sonde export wrote. Export it "
            "again, or restore it from a backup."
        )
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except InputError:
        raise
    except ValueError as error:
        if _is_foreign(path):
            raise InputError(
                f"{path} cannot be read: it is not a NumPy file. Save arrays with "
                "numpy.save or savez."
            ) from None
        if "pickle" in str(error) or "Python objects" in str(error):
            raise InputError(
                f"{path} holds Python objects (a pickle), which can run any code when they are "
                "opened; "
                "it is not loaded. Save plain numbers and texts."
            ) from None
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from None
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from None


def _is_foreign(path: Path) -> bool:
    """Return whether a file's start is neither an array, an archive of arrays nor a pickle."""
    with path.open("rb") as file:
        return not file.read(6).startswith((b"\x93NUMPY", b"PK", b"\x80"))


def _safetensors(path: Path) -> dict[str, Any]:
    _check_header(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = _in_order(list(file.keys()), file.metadata())
        return {name: file.get_tensor(name) for name in names}


def _in_order(names: list[str], metadata: Mapping[str, str] | None) -> list[str]:
    """Return names in the order of execution if an exported store states it, else unchanged."""
    try:
        listed = json.loads((metadata or {})["sonde"])["arrays"]
        place = {str(name): i for i, name in enumerate(listed)}
    except (LookupError, ValueError, TypeError, RecursionError):
        return names
    return sorted(names, key=lambda name: place.get(name, -1))


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path} is not a safetensors file: its header says {length} bytes.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise InputError(f"{path} is not a safetensors file: its header is not JSON.") from None
    if not isinstance(header, Mapping):
        raise InputError(f"{path} is not a safetensors file: its header is not a JSON object.")


def _floats(name: str, x: Any, path: Path) -> torch.Tensor:
    tensor = x if isinstance(x, torch.Tensor) else _tensor(name, x, path)
    if tensor.ndim == 0 or tensor.is_complex():
        raise InputError(f"open_arrays: expected rows of real numbers in {path}: {name}.")
    return tensor.reshape(len(tensor), -1) if tensor.ndim != 2 else tensor


def _tensor(name: str, x: np.ndarray, path: Path) -> torch.Tensor:
    if x.dtype.kind not in "fiub":
        raise InputError(f"open_arrays: expected numbers in {path}: {name}, got {x.dtype}.")
    return as_tensor("open_arrays", x, name)


def texts_of(values: Any) -> list[str] | None:
    """Return an array of texts, numbers or rows of bytes as one text for each row."""
    if values is None:
        return None
    rows = _bytes(values)
    plain = values.tolist() if rows is None else [row.rstrip(b"\0") for row in rows]
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in plain]


def _bytes(values: Any) -> list[bytes] | None:
    """Return the rows of a bytes array, or None for other content."""
    if values is None or values.ndim != 2 or "uint8" not in str(values.dtype):
        return None
    return [row.tobytes() for row in np.asarray(values)]


def _labels(values: Any, name: str, path: Path) -> np.ndarray:
    column = LabelColumn()
    for value in values.tolist():
        column.add(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
    labels = column.finish(None, None, name)
    if labels.reason and not labels.names and not labels.any:
        warnings.warn(f"{path}: {labels.reason}.", SondeWarning, stacklevel=3)
    return labels.values
