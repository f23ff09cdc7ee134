"""Hash identities of examples, and the keyed hash of rows.

An example is known by 16 bytes of its content (or by its id column); a row is (example, occurrence,
position). One 64-bit hash of that triple, the *draw*, decides which rows are sampled, held out or
kept in a subsample, so the decision never depends on order, shards or workers. The hash is
reproducible, not secret: pass a secret seed against an adversary who can choose ids.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Purpose = Literal["sample", "subsample", "split", "tie"]

_POSITION_SHIFT = np.uint64(20)
_SIGN = -(1 << 63)


def bytes_key(content: bytes) -> bytes:
    """Return an input's 16-byte id, stored as ``content``: of a text's UTF-8, or a file's bytes."""
    return blake2b(content, digest_size=16).digest()


def tensor_key(x: Tensor) -> bytes:
    """Return a tensor's 16-byte id, from its dtype, shape and bytes."""
    x = x.detach().cpu().contiguous()
    head = f"{str(x.dtype).removeprefix('torch.')}|{tuple(x.shape)}|".encode()
    flat = x.reshape(-1).view(torch.uint8) if x.numel() else torch.empty(0, dtype=torch.uint8)
    content: Any = flat.numpy()
    digest = blake2b(head, digest_size=16)
    digest.update(content)
    return digest.digest()


def base_hashes(keys: Sequence[bytes], purpose: Purpose, seed: int) -> np.ndarray:
    """Return an unsigned 64-bit number for each example, keyed by purpose and seed."""
    key = f"{purpose}|{seed}".encode()
    joined = b"".join(blake2b(k, digest_size=8, key=key).digest() for k in keys)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Return the splitmix64 finaliser of unsigned 64-bit numbers, with wrap-around.

    Examples
    --------
    >>> [hex(int(v)) for v in splitmix64(np.arange(3, dtype=np.uint64))]
    ['0xe220a8397b1dcdaf', '0x910a2dec89025cc1', '0x975835de1c9756ce']

    References
    ----------
    steele2014splitmix
    """
    with np.errstate(over="ignore"):
        z = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draws(base: np.ndarray, position: np.ndarray, occurrence: np.ndarray) -> Tensor:
    """Return each row's sampling key: ``splitmix64(base + position 2^20 + occurrence)``.

    Parameters
    ----------
    base, position, occurrence : arrays of one length
        The base hash of the row's example, its position, and the example's occurrence.
    """
    with np.errstate(over="ignore"):
        z = base + (position.astype(np.uint64) << _POSITION_SHIFT) + occurrence.astype(np.uint64)
    return torch.as_tensor(splitmix64(z).view(np.int64))


def rank_key(draw: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return signed numbers that sort like the sampling keys as unsigned numbers."""
    return draw ^ _SIGN


def fraction(draw: Int[Tensor, "row"]) -> Tensor:
    """Return each sampling key as a float64 in [0, 1)."""
    bits = torch.as_tensor((draw.numpy().view(np.uint64) >> np.uint64(11)).astype(np.float64))
    return bits * 2.0**-53
