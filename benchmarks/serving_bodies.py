"""Hostile bodies of every type that ``sonde serve`` reads, made from good ones by a seed."""

import copy
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

JSON, FORM = "application/json", "multipart/form-data; boundary=edge"
VALUES = (
    None, True, 0, -1, 0.5, 1e308, float("inf"), 2**31, 2**64, 10**400, "", "a", "\ud800", "\x00",
    "x" * 300, "/etc/passwd", "NaN", [], {}, [[]], [0], {"b64": "AAAA"}, {"": {}},
)  # fmt: skip
"""What is put in the place of a part of a good body."""


@dataclass(frozen=True)
class Sent:
    """A request: its address, the type of its body, and the body."""

    path: str
    kind: str
    body: bytes


def picture(seed: int) -> bytes:
    """Return a small picture in PNG."""
    from PIL import Image

    box, rng = io.BytesIO(), random.Random(seed)
    Image.frombytes("L", (8, 8), rng.randbytes(64)).save(box, "PNG")
    return box.getvalue()


def form(pictures: Sequence[bytes]) -> bytes:
    """Return a multipart form with a file for each picture."""
    head = b'--edge\r\nContent-Disposition: form-data; name="one"; filename="a.png"\r\n\r\n'
    return b"".join(head + one + b"\r\n" for one in pictures) + b"--edge--\r\n"


def hostile(good: Sequence[Sent], n: int, seed: int) -> Iterator[Sent]:
    """Yield ``n`` requests that were good until parts or bytes of them were changed."""
    rng = random.Random(seed)
    for _ in range(n):
        one = rng.choice(good)
        if one.kind == JSON:
            body = _other_values(json.loads(one.body), rng)
            yield Sent(one.path, JSON, _other_bytes(body, rng) if rng.random() < 0.3 else body)
        else:
            kind = one.kind.encode()
            kind = _other_bytes(kind, rng) if rng.random() < 0.1 else kind
            yield Sent(one.path, kind.decode("latin-1"), _other_bytes(one.body, rng))


def _other_values(value: Any, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = _put(value, rng.choice([*_paths(value)]), rng.choice(VALUES), rng.random())
    return json.dumps(value).replace("Infinity", "1e999").encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(part, (*path, key))


def _put(value: Any, path: tuple[Any, ...], new: Any, what: float) -> Any:
    """Replace, delete, rename or repeat the part at a path."""
    if not path:
        return new
    at = value = copy.deepcopy(value)
    for key in path[:-1]:
        at = at[key]
    key = path[-1]
    if what < 0.7:
        at[key] = new
    elif what < 0.85:
        del at[key]
    elif isinstance(at, dict):
        at[str(new)[:20]] = at.pop(key)
    else:
        at.insert(key, new)
    return value


def _other_bytes(body: bytes, rng: random.Random) -> bytes:
    found = bytearray(body)
    for _ in range(rng.choice([1, 2, 5, 20])):
        at, what = rng.randrange(len(found) + 1), rng.random()
        if what < 0.4:
            found[at : at + 1] = rng.randbytes(1)
        elif what < 0.6:
            del found[at : at + rng.choice([1, 3, 50])]
        elif what < 0.8:
            found[at:at] = rng.randbytes(rng.choice([1, 4]))
        elif what < 0.9:
            del found[at:]
        else:
            found[at:at] = found[max(0, at - 30) : at]
    return bytes(found)
