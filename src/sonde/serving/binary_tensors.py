"""The binary form of the Open Inference Protocol: raw tensors after the JSON of a request.

The header ``Inference-Header-Content-Length`` says where the JSON ends. A tensor whose parameter is
``binary_data_size`` has that many bytes there, in the order of the tensors, little endian. A text
is its length in four bytes, and its bytes.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sonde.serving.refusals import Refusal

LENGTH_HEADER = "Inference-Header-Content-Length"
SIZE, WANTED, ALL_WANTED = "binary_data_size", "binary_data", "binary_data_output"
MOST_DIGITS = 12
TYPES = {
    "BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4",
    "UINT64": "<u8",
}  # fmt: skip


def split_body(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON of a body and the bytes after it.

    Raises
    ------
    Refusal
        400 if the length of the JSON is not that of a part of the body.
    """
    if length is None:
        return body, b""
    if not length.isdecimal() or len(length) > MOST_DIGITS or int(length) > len(body):
        raise Refusal(
            400, f"Expected {LENGTH_HEADER} to be the length of the JSON at the start of the body."
        )
    return body[: int(length)], body[int(length) :]


def with_data(found: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """Return a request whose binary tensors have their values in ``data``.

    Raises
    ------
    Refusal
        400 if sizes, types and bytes do not agree.
    """
    tensors, at = found.get("inputs"), 0
    if not isinstance(tensors, list):
        return dict(found)
    filled = list[Any]()
    for one in tensors:
        size = parameter_of(one, SIZE)
        if size is None:
            filled.append(one)
            continue
        if type(size) is not int or not 0 <= size <= len(content) - at:
            raise Refusal(400, f"Expected {SIZE!r} bytes of each binary tensor after the JSON.")
        part, at = content[at : at + size], at + size
        filled.append({**one, "data": _decoded(one.get("datatype"), part)})
    if at != len(content):
        raise Refusal(
            400, f"Expected binary tensors of {at:,} bytes after the JSON, got {len(content):,}."
        )
    return {**found, "inputs": filled}


def parameter_of(tensor: Any, name: str) -> Any:
    """Return a parameter of a tensor or of a request, or None."""
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    return parameters.get(name) if isinstance(parameters, dict) else None


def _decoded(kind: Any, part: bytes) -> list[Any]:
    if kind == "BYTES":
        return _texts(part)
    dtype = TYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise Refusal(400, "Expected a 'datatype' of BYTES, FP32, INT64 or another number.")
    if len(part) % np.dtype(dtype).itemsize:
        raise Refusal(400, f"Expected whole numbers of {kind} in a binary tensor.")
    return np.frombuffer(part, dtype).tolist()


def _texts(part: bytes) -> list[bytes]:
    texts, at = list[bytes](), 0
    while at < len(part):
        if at + 4 > len(part):
            break
        (length,) = struct.unpack_from("<I", part, at)
        texts.append(part[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(part):
        raise Refusal(400, "Expected each text of a binary tensor after its length in 4 bytes.")
    return texts


def encoded(kind: str, data: Sequence[Any]) -> bytes:
    """Return values as bytes; a missing number is NaN, a missing text empty, a missing bool 0."""
    if kind == "BYTES":
        texts = [("" if value is None else value).encode() for value in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    missing = False if kind == "BOOL" else np.nan
    return np.array([missing if x is None else x for x in data], TYPES[kind]).tobytes()
