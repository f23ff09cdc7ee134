"""Safetensors files: positions of their tensors, and writing tensor by tensor."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sonde.core.errors import StateError, StoreError, reason_of
from sonde.core.wording import plural
from sonde.files._layout import DTYPES as STORED
from sonde.files.durable import Bytes, atomic_file

# torch adds and multiplies no unsigned numbers of more than one byte.
DTYPES = {code: dtype for code, (dtype, _) in STORED.items() if code not in ("U16", "U32", "U64")}
WORDS = {dtype: word for word, dtype in DTYPES.items()}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
CHUNK = 1 << 23
_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to be written, with dtype and shape; its bytes are computed when written."""

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    content: Callable[[], Iterable[Bytes]]

    @classmethod
    def later(
        cls, dtype: torch.dtype, shape: Iterable[int], make: Callable[[], Tensor]
    ) -> "TensorEntry":
        """Return the entry of a tensor that is computed when it is written."""
        shape = tuple(shape)
        size = prod(shape) * dtype.itemsize
        return cls(WORDS[dtype], shape, size, lambda: [tensor_bytes(make())])

    @classmethod
    def of(cls, x: Tensor) -> "TensorEntry":
        """Return the entry of an existing tensor."""
        return cls.later(x.dtype, x.shape, lambda: x)


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file on disk.

    Parameters
    ----------
    path : Path
    header : bytes
        Everything before the first tensor.
    entries : mapping of str to Entry
        In the order of their bytes.
    metadata : mapping of str to str
    """

    path: Path
    header: bytes
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "WeightFile":
        """Return the tensors of a file without reading their data.

        Raises
        ------
        StoreError
            If it is no sound safetensors file.
        """
        try:
            with safe_open(path, framework="pt"):  # checks the whole header
                pass
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                text = file.read(size)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"cannot read the weights in {path}: {reason_of(error)}.") from None
        header: dict[str, Any] = json.loads(text)
        metadata = header.pop(_METADATA, {})
        start = 8 + size
        entries = {
            name: _stored(path, start, one)
            for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        }
        return cls(path, size.to_bytes(8, "little") + text, entries, metadata)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, memory-mapped.

        Raises
        ------
        StateError
            If its type is one of quantised weights.
        """
        if self.entries[name].dtype not in DTYPES:
            raise StateError(
                f"{self.path.name} holds {name} as {self.entries[name].dtype}: quantised weights "
                "cannot be changed. Take the model in float16, bfloat16 or float32."
            )
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)


def _stored(path: Path, start: int, told: Mapping[str, Any]) -> TensorEntry:
    first, last = told["data_offsets"]

    def content() -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(start + first)
            left = last - first
            while left and (piece := file.read(min(CHUNK, left))):
                left -= len(piece)
                yield piece

    return TensorEntry(told["dtype"], tuple(told["shape"]), last - first, content)


def tensor_bytes(x: Tensor) -> memoryview:
    """Return the bytes of a tensor, in the order of its entries."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    shown: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(shown)


def file_pieces(
    entries: Mapping[str, TensorEntry], metadata: Mapping[str, str] | None = None
) -> Iterator[Bytes]:
    """Yield the bytes of a safetensors file, computing each tensor when it is written.

    Wide types come first, so that each tensor is aligned.
    """
    ordered = sorted(entries.items(), key=lambda item: -_width(item[1]))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, entry in ordered:
        offsets = [at, at + entry.n_bytes]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        at += entry.n_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return chain(
        [len(text).to_bytes(8, "little") + text],
        chain.from_iterable(entry.content() for _, entry in ordered),
    )


def _width(entry: TensorEntry) -> int:
    n = prod(entry.shape)
    return entry.n_bytes // n if n else 1


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def write_hashed(path: Path, pieces: Iterable[Bytes]) -> str:
    """Write a file and return the SHA-256 of its bytes."""
    digest = sha256()
    with atomic_file(path) as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def files_hash(files: Mapping[str, bytes]) -> str:
    """Return a single SHA-256 of files by name, in hexadecimal."""
    named = sorted((name, sha256(content).hexdigest()) for name, content in files.items())
    return sha256(json.dumps(named).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = sha256()
    for piece in pieces_of(path):
        digest.update(piece)
    return digest.hexdigest()


def type_notes(types: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Return a note on the tensors that are written in another number type than they were read.

    Parameters
    ----------
    types : mapping of (str, str) to int
        Number of tensors by their types, as files name them, before and after.
    """
    names = {word: str(dtype).removeprefix("torch.") for word, dtype in DTYPES.items()}
    changed = [
        f"{plural(n, 'tensor')} of {names[old]} {'is' if n == 1 else 'are'} written as {names[new]}"
        for (old, new), n in sorted(types.items())
        if old != new and {old, new} <= FLOATS
    ]
    return (f"note: {' and '.join(changed)}.",) if changed else ()
