"""The body of a request: read within limits and converted to rows for a model.

Nothing is unpickled, no path of a request is opened, and no text of an input gets into an error.
"""

import base64
import binascii
import io
import json
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from sonde.core.errors import InputError, reason_of
from sonde.data.images import decode
from sonde.data.sources import Row
from sonde.serving.interruptions import interrupted_after
from sonde.serving.limits import Limits
from sonde.serving.refusals import Refusal

JSON, FORM = "application/json", "multipart/form-data"
MOST_DIGITS = 18
"""Digits of a length that a body can have."""
MOST_IGNORED = 16
"""Names of an input that an answer lists as not read."""
COMPRESSIONS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
LARGEST = float(np.finfo(np.float64).max)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises
    ------
    Refusal
        413 for a body that is too large, 408 for one that arrives too slowly.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > MOST_DIGITS or int(length) > limits.body_bytes):
        raise _too_large(limits)
    parts, size = list[bytes](), 0

    def late() -> Refusal:
        return Refusal(
            408,
            f"Expected the body within {limits.body_seconds:g} s, got only {size:,} bytes in "
            "that time. Send the body faster, or send smaller requests.",
            {"Connection": "close"},
        )

    try:
        with interrupted_after(limits.body_seconds, late):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                parts.append(part)
    except ClientDisconnect:
        raise Refusal(400, "The client disconnected before it had sent the whole body.") from None
    return _unpacked(b"".join(parts), request.headers.get("content-encoding", ""), limits)


def _unpacked(body: bytes, encoding: str, limits: Limits) -> bytes:
    """Return the content of a body that may be compressed."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in COMPRESSIONS:
        names = ", ".join(COMPRESSIONS)
        raise Refusal(415, f"Expected a Content-Encoding of {names} or none.")
    unpacking = zlib.decompressobj(COMPRESSIONS[name])
    try:
        unpacked = unpacking.decompress(body, limits.body_bytes + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > limits.body_bytes:
        raise _too_large(limits)
    if not unpacking.eof or unpacking.unused_data:
        raise Refusal(400, f"Expected a body in the form of {name}, got something else.")
    return unpacked


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413,
        f"Expected a body of at most {limits.body_bytes:,} bytes. Send fewer inputs in a request.",
        {"Connection": "close"},
    )


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises
    ------
    Refusal
        400 for anything else: no UTF-8, no JSON, NaN, too deep, no object.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else reason_of(error)
        raise Refusal(400, f"Expected a JSON object in UTF-8: {reason}.") from None
    if not isinstance(content, dict):
        raise Refusal(400, 'Expected a JSON object such as {"inputs": [...]}.')
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")


def inputs_in(found: Mapping[str, Any], limits: Limits) -> list[Any]:
    """Return the inputs of a request's JSON."""
    inputs = found.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise Refusal(
            400,
            'Expected a list of at least one input, as {"inputs": ["a text"]}. GET /openapi.json '
            "describes the format of every request.",
        )
    check_count(len(inputs), limits)
    return inputs


def check_count(n: int, limits: Limits) -> None:
    """Refuse a request with too many inputs."""
    if n > limits.inputs:
        raise Refusal(
            413, f"Expected at most {limits.inputs} inputs, got {n:,}. Send several requests."
        )


async def form_files(request: Request, body: bytes, limits: Limits) -> list[bytes]:
    """Return the files of a multipart form.

    Raises
    ------
    Refusal
        400 if it is no such form, or holds no file.
    """

    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=limits.inputs, max_fields=8)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError, AssertionError):
        raise Refusal(
            400, "Expected a multipart form with a file for each picture, got another body."
        ) from None
    files = [value for _, value in form.multi_items() if not isinstance(value, str)]
    if not files:
        raise Refusal(400, "Expected a file for each picture in the form, got none.")
    contents = [await file.read() for file in files]
    await form.close()
    return contents


class Rows:
    """Conversion of a request's inputs to rows for one model.

    Parameters
    ----------
    kind : str
        Of the model's items: text, pair, messages, tokens, image, numbers, tensor, features.
    columns : sequence of str
        The columns that hold them.
    limits : Limits
    named : bool, default=True
        Whether the columns are known; else those of each object are taken.
    dtype : numpy float type, default=float32
        Of arrays of floats.
    """

    def __init__(
        self,
        kind: str,
        columns: Sequence[str],
        limits: Limits,
        named: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.kind, self.columns, self.limits = kind, tuple(columns), limits
        self.named, self.dtype = named, dtype

    def of(self, inputs: Sequence[Any]) -> list[Row | Refusal]:
        """Return a row for each input, or the refusal of an input that has another form."""
        return [self._tried(value, i) for i, value in enumerate(inputs)]

    def ignored(self, value: Any) -> tuple[str, ...]:
        """Return the names that an input has and the model does not read, at most 16."""
        if not self.named or not isinstance(value, dict) or self.kind in ("image", "audio"):
            return ()
        return tuple(name for name in value if name not in self.columns)[:MOST_IGNORED]

    def _tried(self, value: Any, i: int) -> Row | Refusal:
        try:
            return self._row(value, i)
        except Refusal as refusal:
            return refusal

    def _row(self, value: Any, i: int) -> Row:
        if self.kind == "image":
            return {self.columns[0]: self._picture(value, i)}
        if isinstance(value, str) and len(self.columns) == 1 and self.kind in ("text", "callable"):
            return {self.columns[0]: self._text(value, i)}
        if isinstance(value, list):
            return self._of_list(value, i)
        if isinstance(value, dict) and self.kind not in ("image", "audio"):
            names = self.columns if self.named else tuple(value)
            missing = [name for name in names if name not in value]
            if missing:
                text = f"Input {i}: expected the column {missing[0]!r}, got none."
                raise Refusal(400, text, column=missing[0])
            row = {name: value[name] for name in names}
            return {name: self._cell(cell, i, name) for name, cell in row.items()}
        raise self._wrong(i)

    def _cell(self, cell: Any, i: int, name: str) -> Any:
        if self.kind == "numbers":
            return _number(cell, i, name)
        if isinstance(cell, str):
            return self._text(cell, i)
        if self.kind in ("tensor", "features") and isinstance(cell, list):
            return array_of(cell, i, self.dtype)
        if self.kind in ("messages", "tokens") and isinstance(cell, list):
            return cell
        if cell is None or isinstance(cell, int | float):
            return cell
        raise self._wrong(i)

    def _of_list(self, value: list[Any], i: int) -> Row:
        if self.kind == "numbers":
            if len(value) != len(self.columns):
                raise Refusal(
                    400, f"Input {i}: expected {len(self.columns)} numbers, got {len(value):,}."
                )
            each = zip(self.columns, value, strict=True)
            return {name: _number(cell, i, name) for name, cell in each}
        if self.kind == "tokens" and all(type(v) is int for v in value):
            return {self.columns[0]: value}
        if self.kind in ("tensor", "callable"):
            return {self.columns[0]: array_of(value, i, self.dtype)}
        if self.kind == "messages" and all(isinstance(v, dict) for v in value):
            return {self.columns[0]: value}
        raise self._wrong(i)

    def _text(self, text: str, i: int) -> str:
        if self.kind in ("text", "pair") and not text.strip():
            raise Refusal(400, f"Input {i}: expected a text, got an empty or blank text.")
        return _clean(text, i)

    def _picture(self, value: Any, i: int) -> Any:
        if isinstance(value, bytes):
            return picture(value, i, self.limits)
        text = value.get("b64") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise Refusal(
                400, f'Input {i}: expected a picture as {{"b64": "..."}}, or as a file of a form.'
            )
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, f"Input {i}: expected base64 in 'b64'.") from None
        return picture(content, i, self.limits)

    def _wrong(self, i: int) -> Refusal:
        forms = {
            "text": "a text",
            "numbers": f"an object with the columns {', '.join(self.columns[:6])}",
            "tensor": "a list of numbers",
            "tokens": "a list of token ids",
        }
        named = ", ".join(self.columns)
        return Refusal(
            400,
            f"Input {i}: expected {forms.get(self.kind, f'an object with {named}')}. GET "
            "/openapi.json shows an example.",
        )


def _number(cell: Any, i: int, name: str) -> int | float:
    """Return the number of a column; refuse texts, booleans, infinity and missing values."""
    if isinstance(cell, bool):
        got = "true or false"
    elif isinstance(cell, int | float):
        if abs(cell) <= LARGEST:
            return cell
        got = "a number that is too large"
    else:
        got = "no value" if cell is None else "a text" if isinstance(cell, str) else "a list"
    text = f"Input {i}: expected a number in column {name!r}, got {got}."
    raise Refusal(400, text, column=name)


def _clean(text: str, i: int) -> str:
    """Return a text; refuse lone surrogates, which no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refusal(
            400, f"Input {i}: expected valid Unicode text, got an unpaired surrogate."
        ) from None
    return text


def array_of(value: Any, i: int, dtype: Any = np.float32) -> np.ndarray:
    """Convert nested lists to an array: whole numbers to int64, others to floats."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.dtype.kind not in "if" or not array.size:
        raise Refusal(400, f"Input {i}: expected numbers in lists of equal length.")
    with np.errstate(over="ignore"):  # infinity in float32 is an input that the detectors see
        return array.astype(dtype) if array.dtype.kind == "f" else array.astype(np.int64)


def picture(content: bytes, i: int, limits: Limits) -> Any:
    """Decode an image after a check of its size.

    Raises
    ------
    Refusal
        413 for too many pixels, 400 for what is no picture.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            width, height = image.size
            if width * height > limits.pixels:
                raise Refusal(
                    413,
                    f"Input {i}: expected at most {limits.pixels:,} pixels, got {width} x "
                    f"{height}. Send a smaller picture.",
                )
            return decode(image)
    except (UnidentifiedImageError, InputError, OSError, ValueError, SyntaxError, MemoryError,
            Image.DecompressionBombError):  # fmt: skip
        raise Refusal(400, f"Input {i}: the picture cannot be decoded.") from None
