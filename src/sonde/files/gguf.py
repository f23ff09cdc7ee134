"""GGUF files of llama.cpp: the header of any file, and control vectors as new files.

A control vector is one direction for each block. Only the types that it needs are written: texts,
whole numbers, float32 vectors. Models in GGUF are opened by ``sonde.data``.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.files.durable import atomic_write

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
CONTROL_VECTOR = "controlvector"
"""The architecture that a file of a control vector names."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_F32 = 0
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Format of each fixed-size value, by its number in the file."""
_KEPT_ITEMS = 64
"""Longer lists (vocabularies, merges) are counted, not kept."""
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Names of the types of tensors, as llama.cpp writes them."""


@final
@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file holds, without its tensors' values.

    Parameters
    ----------
    facts : mapping of str to object
        The metadata. A list of more than 64 items is given as its length.
    shapes : mapping of str to tuple of int
        Shape of each tensor, in the order of torch.
    types : mapping of str to str
        Type of each tensor as llama.cpp names it, such as ``Q4_K``.
    """

    facts: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]

    @property
    def architecture(self) -> str:
        """``general.architecture``: the family of the model, or ``controlvector``."""
        return str(self.facts.get("general.architecture", "unknown"))

    @property
    def n_values(self) -> int:
        """The number of values in all tensors."""
        return sum(map(prod, self.shapes.values()))

    def type_counts(self) -> dict[str, int]:
        """Return the number of values of each type, the most frequent type first."""
        counts: Counter[str] = Counter()
        for name, kind in self.types.items():
            counts[kind] += prod(self.shapes[name])
        return dict(counts.most_common())

    @classmethod
    def read(cls, path: str | Path) -> "GGUFHeader":
        """Return the header of a file.

        Raises
        ------
        InputError
            If the file is no whole GGUF file of version 2 or 3.
        """
        path = Path(path)
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise InputError(
                    f"{path} does not begin with {MAGIC.decode()}: it is no GGUF file."
                )
            with mmap(file.fileno(), 0, access=ACCESS_READ) as raw:
                try:
                    return _header(_Cursor(raw, 4))
                except (struct.error, UnicodeDecodeError, ValueError) as error:
                    is_cut = isinstance(error, struct.error)
                    reason = f"the file ends after {len(raw):,} bytes" if is_cut else str(error)
                    raise InputError(
                        f"{path}: the header of this GGUF file is cut or damaged ({reason}). "
                        "Obtain the file again."
                    ) from None


class _Cursor:
    """A position in a file that moves with what is read."""

    def __init__(self, raw: mmap, at: int) -> None:
        self.raw, self.at = raw, at

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.raw, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def text(self, keep: bool = True) -> str:
        (size,) = self.take("Q")
        if size > len(self.raw) - self.at:
            raise ValueError(f"a text of {size:,} bytes")
        self.at += size
        return self.raw[self.at - size : self.at].decode() if keep else ""

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.take(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a value of type {kind}")
        inner, size = self.take("IQ")
        if size > len(self.raw) - self.at:
            raise ValueError(f"a list of {size:,} items")
        keep = size <= _KEPT_ITEMS
        if inner in _NUMBERS and not keep:
            self.at += size * struct.calcsize(f"<{_NUMBERS[inner]}")
        elif inner == _STRING and not keep:
            for _ in range(size):
                self.text(keep=False)
        else:
            return [self.value(inner) for _ in range(size)]
        return size


def _header(cursor: _Cursor) -> GGUFHeader:
    version, n_tensors, n_facts = cursor.take("IQQ")
    if version not in (2, VERSION):
        raise ValueError(f"version {version}; versions 2 and 3 are read")
    facts = {}
    for _ in range(n_facts):
        key = cursor.text()
        facts[key] = cursor.value(cursor.take("I")[0])
    shapes, types = {}, {}
    for _ in range(n_tensors):
        name, (rank,) = cursor.text(), cursor.take("I")
        if rank > 8:
            raise ValueError(f"tensor {name!r} of {rank} axes")
        shapes[name] = tuple(reversed(cursor.take(f"{rank}Q")))
        kind, _ = cursor.take("IQ")
        types[name] = TYPES.get(kind, f"type {kind}")
    return GGUFHeader(facts, shapes, types)


def write_control_vector(
    path: str | Path, architecture: str, vectors: Mapping[int, Float[Tensor, "dim"]]
) -> None:
    """Write the vectors that are added after some blocks.

    Parameters
    ----------
    path : path
    architecture : str
        ``model_type`` of the model's configuration, a hint for the reader.
    vectors : mapping of int to Float[Tensor, "dim"]
        By the number of the block, from 0. The format has no place for block 0.

    Raises
    ------
    InputError
        If there is no vector for a block after the first, or one is not finite.
    """
    kept = {n: v.detach().cpu().float().numpy() for n, v in sorted(vectors.items()) if n > 0}
    if not kept or not all(np.isfinite(v).all() for v in kept.values()):
        raise InputError(
            "write_control_vector: expected finite vectors for the blocks after the first "
            f"block, got {'none' if not kept else 'NaN or infinity'}. Fit at all blocks."
        )
    facts = {
        "general.architecture": CONTROL_VECTOR,
        "controlvector.model_hint": architecture,
        "controlvector.layer_count": len(kept),
    }
    head = MAGIC + struct.pack("<IQQ", VERSION, len(kept), len(facts))
    for key, value in facts.items():
        head += _length_and_bytes(key)
        if isinstance(value, str):
            head += struct.pack("<I", _STRING) + _length_and_bytes(value)
        else:
            head += struct.pack("<II", _UINT32, value)
    data = b""
    for number, vector in kept.items():
        head += _length_and_bytes(f"direction.{number}") + struct.pack("<I", 1)
        head += struct.pack("<QIQ", len(vector), _F32, len(data))
        data += _padded(vector.astype("<f4").tobytes())
    atomic_write(Path(path), _padded(head) + data)


def _length_and_bytes(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(raw: bytes) -> bytes:
    return raw + b"\0" * (-len(raw) % ALIGNMENT)
