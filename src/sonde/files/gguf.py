"""Control vectors of llama.cpp: one direction for each block, in a GGUF file.

Only the types that such a file needs are written: texts, whole numbers, float32 vectors.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.files.durable import atomic_write

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_UINT32, _STRING = 4, 8
_F32 = 0


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
        "general.architecture": "controlvector",
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
