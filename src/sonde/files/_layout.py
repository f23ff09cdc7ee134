"""Byte layout of a state file. Equal content gives equal bytes, which are checked before use.

A head is accepted only if writing its contents gives the same head again; so duplicate keys,
blanks, gaps, overlaps and names out of order need no rule of their own.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from sonde.core._kinds import is_dict, is_list
from sonde.core.errors import StateError
from sonde.core.state import canonical_json
from sonde.files._values import DEEPEST, LARGEST

FORMAT = "sonde-state"
VERSION = 1
HEADER_LIMIT = 8 << 20
MOST_TENSORS = 50_000
MOST_VALUES = 400_000
MOST_AXES = 16
LONGEST_EMPTY = 1 << 24

DTYPES: dict[str, tuple[torch.dtype, int]] = {
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
CODES = {dtype: code for code, (dtype, _) in DTYPES.items()}
_META = '{"__metadata__":{"sonde":'
NUMBER = r"(?:0|[1-9]\d{0,15})"
_ENTRY = re.compile(
    rf',"t({NUMBER})":\{{"dtype":"([A-Z0-9]{{2,4}})","shape":\[((?:{NUMBER}(?:,{NUMBER})*)?)\],'
    rf'"data_offsets":\[({NUMBER}),({NUMBER})\]\}}'
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class TensorSlot:
    """Position of one tensor in the payload."""

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
class Contents:
    """A checked file head: the envelope, the table of tensors, and the payload's start."""

    envelope: dict[str, Any]
    slots: list[TensorSlot]
    table: str
    start: int


def slots_of(tensors: list[Tensor]) -> list[TensorSlot]:
    """Return the positions of tensors that are written one after the other."""
    slots: list[TensorSlot] = []
    begin = 0
    for tensor in tensors:
        end = begin + tensor.numel() * tensor.element_size()
        slots.append(TensorSlot(CODES[tensor.dtype], tuple(tensor.shape), begin, end))
        begin = end
    return slots


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor without a copy."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def hash_of(envelope: dict[str, Any], table: str, pieces: Iterator[memoryview]) -> str:
    """Return the hash of a file's content, excluding the hash field."""
    digest = hashlib.blake2b(canonical_json(envelope).encode(), digest_size=32)
    digest.update(table.encode())
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def head_of(envelope: dict[str, Any], table: str) -> bytes:
    """Return the head of a state file with this envelope and table, padded to whole words."""
    text = f'{{"__metadata__":{{"sonde":{json.dumps(canonical_json(envelope))}}}{table}}}'.encode()
    return text + b" " * (-len(text) % 8)


def pieces_of(head: bytes, tensors: list[Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file in order."""
    yield len(head).to_bytes(8, "little") + head
    for tensor in tensors:
        yield raw_bytes(tensor)


def refuse_oversized(head: bytes, slots: list[TensorSlot], inner: str) -> None:
    """Raise if the head has more bytes, tensors or values than a reader accepts."""
    n_values = _count_values(inner)
    if len(head) > HEADER_LIMIT or len(slots) > MOST_TENSORS or n_values > MOST_VALUES:
        raise StateError(
            f"write_state: {len(slots)} tensors and {n_values} header values exceed the limits "
            f"of a reader ({MOST_TENSORS}, {MOST_VALUES}). Fit fewer sites in one file."
        )


def _count_values(text: str) -> int:
    """Return an upper bound on the number of values in a JSON text."""
    return sum(text.count(mark) for mark in ",:[{")


def read_contents(file: BufferedReader, path: Path, limit: int = HEADER_LIMIT) -> Contents:
    """Return a file's head, checked against the file's size but not against the hash."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(limit, HEADER_LIMIT, size - 8):
        raise damaged(path, f"a header of {length} bytes in a file of {size}")
    try:
        head = file.read(length).decode("ascii")
    except UnicodeDecodeError as error:
        raise damaged(path, "the header is not ASCII") from error
    inner, position = _inner(head, path)
    slots = _table(head, position, path)
    payload = slots[-1].end if slots else 0
    if payload != size - 8 - length:
        raise damaged(
            path,
            f"the header announces {payload} bytes of tensors, the file contains "
            f"{size - 8 - length}",
        )
    table = "".join(slot.entry(i) for i, slot in enumerate(slots))
    envelope = _envelope(inner, path)
    if head_of(envelope, table).decode() != head:
        raise damaged(path, "the header is not in canonical form")
    return Contents(envelope, slots, table, 8 + length)


def _inner(head: str, path: Path) -> tuple[str, int]:
    """Return the text of the metadata value, and the start of the table of tensors."""
    if not head.startswith(_META + '"'):
        raise damaged(path, "no sonde header")
    try:
        inner, end = json.JSONDecoder().raw_decode(head, len(_META))
    except ValueError as error:
        raise damaged(path, "the header is not JSON") from error
    if head[end : end + 1] != "}":
        raise damaged(path, "more than one metadata key")
    return inner, end + 1


def _table(head: str, position: int, path: Path) -> list[TensorSlot]:
    slots: list[TensorSlot] = []
    begin = 0
    while (match := _ENTRY.match(head, position)) is not None:
        index, code, shape_text, first, last = match.groups()
        shape = tuple(int(d) for d in shape_text.split(",")) if shape_text else ()
        slot = TensorSlot(code, shape, int(first), int(last))
        n_bytes = _size_of(slot, path)
        if int(index) != len(slots) or slot.begin != begin or slot.end != begin + n_bytes:
            raise damaged(path, f"tensor t{index} has a wrong offset")
        if len(slots) == MOST_TENSORS:
            raise damaged(path, f"more than {MOST_TENSORS} tensors")
        slots.append(slot)
        begin, position = slot.end, match.end()
    return slots


def _size_of(slot: TensorSlot, path: Path) -> int:
    if slot.code not in DTYPES or len(slot.shape) > MOST_AXES:
        raise damaged(path, f"a tensor of type {slot.code} with {len(slot.shape)} axes")
    n_bytes = math.prod(slot.shape) * DTYPES[slot.code][1]
    if n_bytes > LARGEST or (n_bytes == 0 and max(slot.shape) > LONGEST_EMPTY):
        raise damaged(path, f"an invalid shape {slot.shape[:4]}")
    return n_bytes


def _envelope(inner: str, path: Path) -> dict[str, Any]:
    if _count_values(inner) > MOST_VALUES:
        raise damaged(path, f"more than {MOST_VALUES} values in the header")
    try:
        envelope = json.loads(inner, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "the header is not JSON") from error
    if not is_dict(envelope) or envelope.get("format") != FORMAT:
        raise damaged(path, "not a sonde state")
    if envelope.get("version") != VERSION:
        raise StateError(
            f"read_state: {path} has format version {envelope.get('version')!r}, but this "
            f"version of sonde reads {VERSION}. Install the version of sonde that wrote it."
        )
    shape = {"format": str, "version": int, "header": dict, "states": dict, "hash": str}
    if envelope.keys() != shape.keys() or any(type(envelope[k]) is not t for k, t in shape.items()):
        raise damaged(path, "missing or unknown header keys")
    if _too_deep(envelope, 2 * DEEPEST):
        raise damaged(path, "the header is nested too deeply")
    return envelope


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _too_deep(value: Any, left: int) -> bool:
    if not (is_dict(value) or is_list(value)):
        return False
    items = value.values() if is_dict(value) else value
    return left == 0 or any(_too_deep(item, left - 1) for item in items)


def verify(file: BufferedReader, contents: Contents, path: Path) -> None:
    """Compare all bytes with the hash, piece by piece."""
    file.seek(contents.start)
    rest = {k: v for k, v in contents.envelope.items() if k != "hash"}
    pieces = (memoryview(piece) for piece in iter(lambda: file.read(_CHUNK), b""))
    if hash_of(rest, contents.table, pieces) != contents.envelope["hash"]:
        raise damaged(path, "the checksum does not match")


def damaged(path: Path, what: str) -> StateError:
    """Return the error for a damaged file."""
    return StateError(
        f"read_state: {path} is damaged or not a state file: {what}. "
        "Take it from a backup, or fit again."
    )
