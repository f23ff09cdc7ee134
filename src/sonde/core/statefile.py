"""The one codec of ``.sonde`` files: fitted states as safetensors with a header in canonical JSON.

The layout is that of safetensors, so any reader of that format opens the tensors, but narrower: one
text for one content. Tensors are named ``t0, t1, ...`` in the order of their bytes, there is one
metadata key, and the header holds a hash of everything else. A file is untrusted until that hash
and every offset has been checked, and its fields are decoded by the types that the caller expects:
the file never names a class.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_type_hints

import torch
from torch import Tensor

from sonde.core import _stateval
from sonde.core.errors import StateError, StoreError
from sonde.core.files import atomic_file
from sonde.core.state import State, canonical_json
from sonde.core.statistic import Learner, Statistic

FORMAT = "sonde-state"
VERSION = 1
HEADER_LIMIT = 8 << 20
TOTAL_LIMIT = 4 << 30
MOST_TENSORS = 50_000
MOST_VALUES = 400_000
MOST_AXES = 16
LONGEST_EMPTY = 1 << 24

States = Mapping[str, State | None]
Types = Mapping[str, type[State]] | Callable[[str], type[State]]

_DTYPES: dict[str, tuple[torch.dtype, int]] = {
    "F64": (torch.float64, 8),
    "F32": (torch.float32, 4),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
    "I64": (torch.int64, 8),
    "I32": (torch.int32, 4),
    "I16": (torch.int16, 2),
    "I8": (torch.int8, 1),
    "U8": (torch.uint8, 1),
    "U16": (torch.uint16, 2),
    "U32": (torch.uint32, 4),
    "U64": (torch.uint64, 8),
    "BOOL": (torch.bool, 1),
}
_CODES = {dtype: code for code, (dtype, _) in _DTYPES.items()}
_META = '{"__metadata__":{"sonde":'
_NUMBER = r"(?:0|[1-9]\d{0,15})"
_ENTRY = re.compile(
    rf',"t({_NUMBER})":\{{"dtype":"([A-Z0-9]{{2,4}})","shape":\[((?:{_NUMBER}(?:,{_NUMBER})*)?)\],'
    rf'"data_offsets":\[({_NUMBER}),({_NUMBER})\]\}}'
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Slot:
    """Where one tensor lies in the payload."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def entry(self, index: int) -> str:
        shape = ",".join(map(str, self.shape))
        return (
            f',"t{index}":{{"dtype":"{self.code}","shape":[{shape}],'
            f'"data_offsets":[{self.begin},{self.end}]}}'
        )


@dataclass(frozen=True)
class _Contents:
    """A checked head: the envelope, the table of tensors, and where the payload starts."""

    envelope: dict[str, Any]
    slots: list[_Slot]
    table: str
    start: int


def state_type(statistic: Statistic[Any]) -> Any:
    """Return the type of a statistic's state: what ``observe`` (a learner's ``start``) returns."""
    cls = type(statistic)
    function = cls.start if isinstance(statistic, Learner) else cls.observe
    found = get_type_hints(function).get("return")
    if found is None or not (isinstance(found, type) and issubclass(found, State)):
        name = f"{cls.__name__}.{function.__name__}"
        raise TypeError(f"{name}: expected a State class as return annotation, got {found!r}.")
    return found


def write_state(
    path: Path | str, header: dict[str, Any], states: States, durable: bool = True
) -> str:
    """Write states to a file and return its id, the SHA-256 of its bytes.

    The bytes depend on the arguments alone: no time, host, path or worker enters.

    Parameters
    ----------
    path : path
        Replaced if it exists; appears whole or not at all.
    header : dict
        JSON values that describe the states.
    states : mapping of id to State or None
        None stands for "no row".
    durable : bool, default=True
        Sync to disk before returning.

    Raises
    ------
    StoreError
        If the file cannot be written.
    StateError
        If there are more values or tensors than a reader would accept.
    """
    shelf = _Shelf()
    trees = {
        name: None if state is None else _stateval.encode(state, shelf.put, name)
        for name, state in sorted(states.items())
    }
    tensors = shelf.tensors
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
    new_name = {f"#{old}": f"t{new}" for new, old in enumerate(order)}
    ordered = [tensors[i] for i in order]
    slots = _slots(ordered)
    table = "".join(slot.entry(i) for i, slot in enumerate(slots))
    envelope = {
        "format": FORMAT,
        "version": VERSION,
        "header": header,
        "states": {name: _renamed(tree, new_name) for name, tree in trees.items()},
    }
    payload = _hash_of(envelope, table, (_raw(t) for t in ordered))
    head = _head({**envelope, "hash": payload}, table)
    _refuse_oversized(head, slots, canonical_json(envelope))
    whole = hashlib.sha256()
    with atomic_file(path, durable) as file:
        for piece in _pieces(head, ordered):
            whole.update(piece)
            file.write(piece)
    return whole.hexdigest()


def read_header(path: Path | str, limit: int = HEADER_LIMIT) -> dict[str, Any]:
    """Return the header of a file without reading its tensors.

    Raises
    ------
    StateError
        If the head is not that of a state file. Tensors are not looked at.
    """
    with _opened(path) as file:
        return _contents(file, Path(path), limit, TOTAL_LIMIT).envelope["header"]


def check_state(path: Path | str, limit_bytes: int = TOTAL_LIMIT) -> dict[str, Any]:
    """Return the header of a file whose every byte was verified against the hash it holds.

    Raises
    ------
    StateError
        If any byte differs from what was written.
    """
    with _opened(path) as file:
        contents = _contents(file, Path(path), HEADER_LIMIT, limit_bytes)
        _verify(file, contents, Path(path))
        return contents.envelope["header"]


def read_state(
    path: Path | str, types: Types, limit_bytes: int = TOTAL_LIMIT
) -> tuple[dict[str, Any], dict[str, State | None]]:
    """Return the header and the states of a file.

    Parameters
    ----------
    path : path
    types : mapping of id to State class, or callable from id to State class
        What to build. With a mapping the file must hold exactly its ids.
    limit_bytes : int, default=4 GiB
        Largest payload that is accepted.

    Raises
    ------
    StateError
        If the file is damaged, of another kind, or does not fit ``types``.
    StoreError
        If it cannot be opened.
    """
    path = Path(path)
    with _opened(path) as file:
        contents = _contents(file, path, HEADER_LIMIT, limit_bytes)
        _verify(file, contents, path)
        trees = contents.envelope["states"]
        if isinstance(types, Mapping) and types.keys() != trees.keys():
            lacking, extra = (
                sorted(types.keys() - trees.keys()),
                sorted(trees.keys() - types.keys()),
            )
            raise StateError(
                f"read_state: {path} holds other states: lacking {lacking[:3]}, unknown "
                f"{extra[:3]}. Fit again with the same methods and sites."
            )
        load = _Loader(file, contents)
        find = types.__getitem__ if isinstance(types, Mapping) else types
        states: dict[str, State | None] = {}
        for name, tree in trees.items():
            try:
                wanted = find(name)
            except LookupError as error:
                raise StateError(f"read_state: {path} holds an unknown state {name!r}.") from error
            where = f"read_state: {path}: {name}"
            states[name] = None if tree is None else _stateval.decode(tree, wanted, load, where)
        load.finish(path)
        return contents.envelope["header"], states


class _Shelf:
    """Collects tensors and hands out their names."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def put(self, tensor: Tensor) -> str:
        if tensor.dtype not in _CODES or tensor.layout != torch.strided:
            raise TypeError(
                f"write_state: cannot store a tensor of {tensor.dtype}, {tensor.layout}."
            )
        self.tensors.append(tensor.detach().cpu().contiguous())
        return f"#{len(self.tensors) - 1}"


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, str):
        return names[tree]
    if isinstance(tree, list):
        return [_renamed(item, names) for item in tree]
    if isinstance(tree, dict):
        tagged = len(tree) == 1 and next(iter(tree)).startswith("$")
        return tree if tagged else {k: _renamed(v, names) for k, v in tree.items()}
    return tree


def _slots(tensors: list[Tensor]) -> list[_Slot]:
    slots, begin = [], 0
    for tensor in tensors:
        end = begin + tensor.numel() * tensor.element_size()
        slots.append(_Slot(_CODES[tensor.dtype], tuple(tensor.shape), begin, end))
        begin = end
    return slots


def _raw(tensor: Tensor) -> memoryview:
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _hash_of(envelope: dict[str, Any], table: str, pieces: Iterator[memoryview]) -> str:
    found = hashlib.blake2b(canonical_json(envelope).encode(), digest_size=32)
    found.update(table.encode())
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _head(envelope: dict[str, Any], table: str) -> bytes:
    text = f'{{"__metadata__":{{"sonde":{json.dumps(canonical_json(envelope))}}}{table}}}'.encode()
    return text + b" " * (-len(text) % 8)


def _pieces(head: bytes, tensors: list[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(head).to_bytes(8, "little") + head
    for tensor in tensors:
        yield _raw(tensor)


def _refuse_oversized(head: bytes, slots: list[_Slot], inner: str) -> None:
    n_values = _count_values(inner)
    if len(head) > HEADER_LIMIT or len(slots) > MOST_TENSORS or n_values > MOST_VALUES:
        raise StateError(
            f"write_state: {len(slots)} tensors and {n_values} header values are more than a "
            f"reader accepts ({MOST_TENSORS}, {MOST_VALUES}). Fit fewer sites in one file."
        )


def _count_values(text: str) -> int:
    """Return a bound on the number of values in a JSON text."""
    return sum(text.count(mark) for mark in ",:[{")


class _opened:
    """A file opened for reading; what the system refuses becomes a ``StoreError``."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)

    def __enter__(self) -> BinaryIO:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise StoreError(
                f"could not read {self._path}: {error.strerror}. Check the path."
            ) from error
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._file.close()
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise StoreError(f"could not read {self._path}: {error.strerror}.") from error


def _contents(file: BinaryIO, path: Path, limit: int, total: int) -> _Contents:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(limit, HEADER_LIMIT, size - 8):
        raise _damaged(path, f"a header of {length} bytes in a file of {size}")
    try:
        head = file.read(length).decode("ascii")
    except UnicodeDecodeError as error:
        raise _damaged(path, "the header is not ASCII") from error
    inner, position = _inner(head, path)
    slots = _table(head, position, path)
    payload = slots[-1].end if slots else 0
    if payload != size - 8 - length:
        raise _damaged(path, f"{payload} bytes of tensors announced, {size - 8 - length} there")
    if payload > total:
        raise StateError(f"read_state: {path} holds {payload} bytes, more than the limit {total}.")
    table = "".join(slot.entry(i) for i, slot in enumerate(slots))
    envelope = _envelope(inner, path)
    if _head(envelope, table).decode() != head:
        raise _damaged(path, "the header is not in canonical form")
    return _Contents(envelope, slots, table, 8 + length)


def _inner(head: str, path: Path) -> tuple[str, int]:
    """Return the text of the one metadata value, and where the table of tensors begins."""
    if not head.startswith(_META + '"'):
        raise _damaged(path, "no sonde header")
    try:
        inner, end = json.JSONDecoder().raw_decode(head, len(_META))
    except ValueError as error:
        raise _damaged(path, "the header is not JSON") from error
    if head[end : end + 1] != "}":
        raise _damaged(path, "more than one metadata key")
    return inner, end + 1


def _table(head: str, position: int, path: Path) -> list[_Slot]:
    slots: list[_Slot] = []
    begin = 0
    while (match := _ENTRY.match(head, position)) is not None:
        index, code, shape_text, first, last = match.groups()
        shape = tuple(int(d) for d in shape_text.split(",")) if shape_text else ()
        slot = _Slot(code, shape, int(first), int(last))
        n_bytes = _size_of(slot, path)
        if int(index) != len(slots) or slot.begin != begin or slot.end != begin + n_bytes:
            raise _damaged(path, f"tensor t{index} is out of place")
        if len(slots) == MOST_TENSORS:
            raise _damaged(path, f"more than {MOST_TENSORS} tensors")
        slots.append(slot)
        begin, position = slot.end, match.end()
    return slots


def _size_of(slot: _Slot, path: Path) -> int:
    if slot.code not in _DTYPES or len(slot.shape) > MOST_AXES:
        raise _damaged(path, f"a tensor of type {slot.code} with {len(slot.shape)} axes")
    n_bytes = math.prod(slot.shape) * _DTYPES[slot.code][1]
    if n_bytes > _stateval.LARGEST or (n_bytes == 0 and max(slot.shape) > LONGEST_EMPTY):
        raise _damaged(path, f"an impossible shape {slot.shape[:4]}")
    return n_bytes


def _envelope(inner: str, path: Path) -> dict[str, Any]:
    if _count_values(inner) > MOST_VALUES:
        raise _damaged(path, f"more than {MOST_VALUES} values in the header")
    try:
        envelope = json.loads(inner, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "the header is not JSON") from error
    if not isinstance(envelope, dict) or envelope.get("format") != FORMAT:
        raise _damaged(path, "not a sonde state")
    if envelope.get("version") != VERSION:
        raise StateError(
            f"read_state: {path} has format version {envelope.get('version')!r}, this sonde reads "
            f"{VERSION}. Install the version of sonde that wrote it."
        )
    shape = {"format": str, "version": int, "header": dict, "states": dict, "hash": str}
    if envelope.keys() != shape.keys() or any(type(envelope[k]) is not t for k, t in shape.items()):
        raise _damaged(path, "missing or unknown header keys")
    if _too_deep(envelope, 2 * _stateval.DEEPEST):
        raise _damaged(path, "the header is nested too deeply")
    return envelope


def _refused(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _too_deep(value: Any, left: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return left == 0 or any(_too_deep(item, left - 1) for item in items)


def _verify(file: BinaryIO, contents: _Contents, path: Path) -> None:
    file.seek(contents.start)
    rest = {k: v for k, v in contents.envelope.items() if k != "hash"}
    pieces = (memoryview(piece) for piece in iter(lambda: file.read(_CHUNK), b""))
    if _hash_of(rest, contents.table, pieces) != contents.envelope["hash"]:
        raise _damaged(path, "the checksum does not match")


class _Loader:
    """Reads tensors by name, each once."""

    def __init__(self, file: BinaryIO, contents: _Contents) -> None:
        self._file, self._contents = file, contents
        self._seen: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name in self._seen:
            return self._seen[name]
        index = int(name[1:]) if re.fullmatch(rf"t{_NUMBER}", name) else -1
        if not 0 <= index < len(self._contents.slots):
            raise StateError(f"read_state: there is no tensor {name[:20]!r}.")
        slot = self._contents.slots[index]
        raw = torch.empty(slot.end - slot.begin, dtype=torch.uint8)
        if raw.numel():
            self._file.seek(self._contents.start + slot.begin)
            if self._file.readinto(memoryview(raw.numpy())) != raw.numel():
                raise StateError("read_state: the file became shorter while it was read.")
        if slot.code == "BOOL" and raw.numel() and int(raw.max()) > 1:
            raise StateError(f"read_state: tensor {name} holds bytes that are no truth values.")
        self._seen[name] = raw.view(_DTYPES[slot.code][0]).reshape(slot.shape)
        return self._seen[name]

    def finish(self, path: Path) -> None:
        if len(self._seen) != len(self._contents.slots):
            raise _damaged(path, "tensors that no state uses")


def _damaged(path: Path, what: str) -> StateError:
    return StateError(
        f"read_state: {path} is damaged or not a state file: {what}. "
        "Take it from a backup, or fit again."
    )
