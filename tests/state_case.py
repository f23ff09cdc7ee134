"""A state with every kind of field, and a way to forge state files whose checksum is right."""

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sonde.core.state import State, canonical_json
from sonde.files.state_file import write_state

QUIET_NAN = struct.unpack(">d", bytes.fromhex("7ff8000000abcdef"))[0]


@dataclass(frozen=True)
class Part(State):
    weight: Float[Tensor, "k"]
    count: int


@dataclass(frozen=True)
class Rich(State):
    n: int
    seed: int
    rate: float
    limit: float
    odd: float
    name: str
    raw: bytes
    kind: Literal["fit", "held"]
    nothing: None
    sure: bool
    maybe: Int[Tensor, "m"] | None
    absent: Float[Tensor, "m"] | None
    mean: Float[Tensor, "dim"]
    scatter: Float[Tensor, "dim dim"] | Float[Tensor, "dim"]
    flags: Bool[Tensor, "m"]
    rows: Shaped[Tensor, "row ..."]
    scalar: Float[Tensor, ""]
    inner: Part
    either: Part | int
    parts: tuple[Part, ...]
    pair: tuple[int, float]
    many: tuple[str, ...]


def rich() -> Rich:
    mean = torch.tensor([1.5, -0.0, math.inf], dtype=torch.float64)
    rows = torch.arange(12, dtype=torch.int16).reshape(3, 2, 2).view(torch.bfloat16)
    return Rich(
        n=7,
        seed=(1 << 63) + 5,
        rate=0.1,
        limit=-math.inf,
        odd=QUIET_NAN,
        name='a "name"\n\U0001f600 with $float',
        raw=b"\x00\xff",
        kind="held",
        nothing=None,
        sure=True,
        maybe=torch.tensor([1, -(1 << 62)]),
        absent=None,
        mean=mean,
        scatter=torch.eye(3, dtype=torch.float64),
        flags=torch.tensor([True, False]),
        rows=rows,
        scalar=torch.tensor(2.5),
        inner=Part(torch.zeros(0), 3),
        either=Part(torch.ones(2, dtype=torch.float16), 0),
        parts=(Part(torch.ones(1), 1), Part(torch.zeros(4), 2)),
        pair=(1, 2.0),
        many=("x", ""),
    )


def good(path: Path) -> bytes:
    """Write a small good file and return its bytes."""
    write_state(path, {"plan": "p", "units": [[0, 3]]}, {"a": rich(), "b": None})
    return path.read_bytes()


@dataclass
class Parts:
    """What a state file is made of, to be changed and put together again."""

    envelope: dict[str, Any]
    table: str
    payload: bytes

    @classmethod
    def of(cls, content: bytes) -> "Parts":
        length = int.from_bytes(content[:8], "little")
        head = content[8 : 8 + length].decode().rstrip()
        inner, end = json.JSONDecoder().raw_decode(head, len('{"__metadata__":{"sonde":'))
        return cls(json.loads(inner), head[end + 1 : -1], content[8 + length :])

    def hashed(self) -> "Parts":
        rest = {k: v for k, v in self.envelope.items() if k != "hash"}
        text = canonical_json(rest).encode() + self.table.encode() + self.payload
        self.envelope["hash"] = hashlib.blake2b(text, digest_size=32).hexdigest()
        return self

    def join(self, inner: str | None = None) -> bytes:
        text = canonical_json(self.envelope) if inner is None else inner
        return framed(
            f'{{"__metadata__":{{"sonde":{json.dumps(text)}}}{self.table}}}', self.payload
        )


def framed(head: str, payload: bytes = b"") -> bytes:
    raw = head.encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + payload


def forged(content: bytes, change: Callable[[Parts], Any]) -> bytes:
    """Return the file with a change and a checksum that fits it."""
    parts = Parts.of(content)
    change(parts)
    return parts.hashed().join()
