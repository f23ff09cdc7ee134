"""Range-code integers by tables or normal distributions that encoder and decoder share."""

from importlib import import_module
from typing import Any

import numpy as np

from sonde.compress._wire import Reader, count_bytes
from sonde.core.errors import InputError, failed_import
from sonde.core.wording import install_extra

MOST = 1 << 20
"""Numbers from -MOST to MOST can be coded: further ones would cost all others their precision."""


def table_coder(owner: str) -> tuple[Any, Any]:
    """Return the module of the range encoder and decoder, and the distribution of tables.

    Raises
    ------
    InputError
        If the package constriction is missing.
    """
    stream = _stream(owner)
    return stream.queue, stream.model.Categorical(perfect=False)


def table_bytes(owner: str, symbols: np.ndarray, tables: np.ndarray) -> bytes:
    """Return the bytes of symbols from 0 upwards, each coded by its own table.

    Parameters
    ----------
    owner : str
    symbols : array (n,)
    tables : array (n, symbol)
    """
    queue, family = table_coder(owner)
    encoder = queue.RangeEncoder()
    if len(symbols):
        encoder.encode(symbols.astype(np.int32), family, np.ascontiguousarray(tables))
    return _sized(encoder)


def read_table(reader: Reader, tables: np.ndarray) -> np.ndarray:
    """Return the symbols that ``table_bytes`` wrote with equal tables."""
    queue, family = table_coder(reader.owner)
    decoder = queue.RangeDecoder(_words(reader))
    if not len(tables):
        return np.zeros(0, np.int64)
    decoded = _decoded(reader, lambda: decoder.decode(family, np.ascontiguousarray(tables)))
    return decoded.astype(np.int64)


def normal_bytes(owner: str, numbers: np.ndarray, means: np.ndarray, scales: np.ndarray) -> bytes:
    """Return the bytes of integers, each coded by a discretised normal distribution.

    Raises
    ------
    InputError
        If a number is beyond ``MOST``.
    """
    if numbers.size and np.abs(numbers).max() > MOST:
        raise InputError(
            f"{owner}.encode: expected numbers within {MOST:,} steps, got a number of "
            f"{np.abs(numbers).max():,.0f} steps. Fit to rows of this size, or use a larger step."
        )
    low, high = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    encoder = _stream(owner).queue.RangeEncoder()
    if numbers.size:
        family = _stream(owner).model.QuantizedGaussian(low, max(high, low + 1))
        encoder.encode(numbers.astype(np.int32), family, means, scales)
    return count_bytes(low + MOST, high + MOST) + _sized(encoder)


def read_normal(reader: Reader, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the integers that ``normal_bytes`` wrote with equal distributions."""
    low, high = reader.count() - MOST, reader.count() - MOST
    if not -MOST <= low <= high <= MOST:
        reader.refuse(f"numbers from {low} to {high} are out of range")
    decoder = _stream(reader.owner).queue.RangeDecoder(_words(reader))
    if not len(means):
        return np.zeros(0, np.int64)
    family = _stream(reader.owner).model.QuantizedGaussian(low, max(high, low + 1))
    return _decoded(reader, lambda: decoder.decode(family, means, scales)).astype(np.int64)


def _sized(encoder: Any) -> bytes:
    words = np.asarray(encoder.get_compressed()).astype("<u4").tobytes()
    return count_bytes(len(words)) + words


def _words(reader: Reader) -> np.ndarray:
    return np.frombuffer(reader.bytes(reader.count()), "<u4").astype(np.uint32)


def _decoded(reader: Reader, decode: Any) -> np.ndarray:
    try:
        return np.asarray(decode())
    except (AssertionError, ValueError):
        reader.refuse("the stream does not fit its distributions")


def _stream(owner: str) -> Any:
    try:
        return import_module("constriction").stream
    except ImportError as error:
        raise InputError(
            f"{owner}: entropy coding needs {failed_import('constriction', error)}. "
            f"Run: {install_extra('codec')}"
        ) from None
