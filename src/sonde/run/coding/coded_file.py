"""Format of a coded file: the kind of content, then the stream of token ids.

Ids stand for the bytes of a file, the tokens of a text, or the values of a picture in raster order.
A text is coded by tokens only if its tokens give the same text back; a picture keeps its pixels,
not the bytes of its file.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sonde.compress import SequenceCoder
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.data.vocabulary import BYTES, is_byte_level

Kind = Literal["bytes", "text", "picture"]
KINDS: tuple[Kind, ...] = ("bytes", "text", "picture")
MAGIC = b"SNDF"
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_HEAD = struct.Struct("<4sBBII")
_CHECK = struct.Struct("<I")


@dataclass(frozen=True)
class Contents:
    """Token ids of a file, and the kind of content that they encode.

    Parameters
    ----------
    kind : {"bytes", "text", "picture"}
    ids : Int[Tensor, "token"]
    mode : str, default=""
        Channels of a picture: L, LA, RGB or RGBA.
    width, height : int, default=0
        Of a picture, in pixels.
    """

    kind: Kind
    ids: Int[Tensor, "token"]
    mode: str = ""
    width: int = 0
    height: int = 0


def predicts_bytes(model: Model) -> bool:
    """Return whether a model's tokens are single bytes."""
    if model.processor is not None:
        return is_byte_level(model.processor)
    return getattr(model.config, "vocab_size", None) == BYTES


def contents_of(raw: bytes, model: Model) -> Contents:
    """Return the token ids of a file for a model.

    Parameters
    ----------
    raw : bytes
        The whole file.
    model : Model
        A language model of bytes or with a tokenizer.

    Raises
    ------
    InputError
        If the tokens of the model cannot give the file back.
    """
    if predicts_bytes(model):
        return _picture(raw) or Contents("bytes", _ids(np.frombuffer(raw, np.uint8)))
    if model.processor is None:
        raise InputError(
            "encode: the model has no tokenizer and does not predict bytes. Pass a language model "
            "with its tokenizer."
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(
            "encode: the file is not a UTF-8 text, and the model predicts tokens of texts. Pass "
            "a model that predicts bytes."
        ) from None
    ids = model.processor(text, add_special_tokens=False, verbose=False)["input_ids"]
    if _text_of_ids(ids, model.processor) != text:
        raise InputError(
            "encode: decoding the tokens does not give the original text: the tokenizer changes "
            "spaces, case or unknown characters. Pass a model that predicts bytes, or a model "
            "with byte-level tokens."
        )
    return Contents("text", torch.tensor(ids, dtype=torch.int64))


def write_contents(contents: Contents, coder: SequenceCoder) -> bytes:
    """Return the coded file of token ids."""
    mode = list(MODES).index(contents.mode) if contents.mode else 0
    kind = KINDS.index(contents.kind)
    head = _HEAD.pack(MAGIC, kind, mode, contents.width, contents.height)
    return head + _CHECK.pack(zlib.crc32(head)) + coder.encode(contents.ids)


def read_contents(coded: bytes, coder: SequenceCoder) -> Contents:
    """Return the token ids of a coded file.

    Raises
    ------
    StateError
        If the file is damaged, or was coded with another model or other versions.
    """
    start = _HEAD.size + _CHECK.size
    if len(coded) < start or coded[:4] != MAGIC:
        raise StateError("decode: expected a file that `sonde encode` wrote, got another file.")
    if zlib.crc32(coded[: _HEAD.size]) != _CHECK.unpack_from(coded, _HEAD.size)[0]:
        raise StateError("decode: the head of the file is damaged. Encode the original again.")
    _, kind, mode, width, height = _HEAD.unpack_from(coded)
    ids = coder.decode(coded[start:])
    if KINDS[kind] != "picture":
        return Contents(KINDS[kind], ids)
    return Contents("picture", ids, tuple(MODES)[mode], width, height)


def file_of(contents: Contents, model: Model) -> bytes:
    """Return the bytes of the decoded file; a picture is written as PNG."""
    if contents.kind == "text":
        return _text_of_ids(contents.ids.tolist(), model.processor).encode("utf-8")
    values = contents.ids.numpy().astype(np.uint8)
    return values.tobytes() if contents.kind == "bytes" else picture_bytes(contents, "PNG")


def picture_bytes(contents: Contents, form: str) -> bytes:
    """Return a picture as a lossless file: ``PNG`` or ``WebP``."""
    from PIL import Image

    values = contents.ids.numpy().astype(np.uint8)
    shape = contents.height, contents.width, MODES[contents.mode]
    shaped = values.reshape(shape if shape[2] > 1 else shape[:2])
    out = io.BytesIO()
    Image.fromarray(shaped, contents.mode).save(out, form, lossless=True)
    return out.getvalue()


def _picture(raw: bytes) -> Contents | None:
    """Return the pixel values of a picture without palette or animation, else None."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw)) as picture:
            if picture.mode not in MODES or getattr(picture, "n_frames", 1) > 1:
                return None
            values = np.asarray(picture)
            return Contents("picture", _ids(values), picture.mode, *picture.size)
    except (UnidentifiedImageError, OSError, ValueError):
        return None  # another kind of file, or a damaged picture: its bytes are kept


def _ids(values: np.ndarray) -> Int[Tensor, "token"]:
    return torch.from_numpy(values.reshape(-1).astype(np.int64))


def _text_of_ids(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
