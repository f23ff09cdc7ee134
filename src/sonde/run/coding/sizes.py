"""Sizes of a file under standard coders, and of a model, for comparison with a coded file."""

import bz2
import lzma
import zlib

import numpy as np
from torch import nn

from sonde.run.coding.coded_file import Contents, picture_bytes


def plain_sizes(raw: bytes, contents: Contents) -> dict[str, int]:
    """Return the size of the file under each coder that uses no model, by coder.

    A picture is compared with PNG and lossless WebP, and its values in raster order with the coders
    of other files: zlib, bzip2 and xz, all at their strongest setting.
    """
    pictures: dict[str, int] = {}
    if contents.kind == "picture":
        pictures = {form: len(picture_bytes(contents, form)) for form in ("PNG", "WebP")}
        raw = contents.ids.numpy().astype(np.uint8).tobytes()
    return pictures | {
        "zlib": len(zlib.compress(raw, 9)),
        "bzip2": len(bz2.compress(raw, 9)),
        "xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    }


def model_bytes(module: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers; shared storages count once."""
    held = {x.untyped_storage().data_ptr(): x.nbytes for x in module.state_dict().values()}
    return sum(held.values())
