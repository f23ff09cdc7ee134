"""Checksums for file formats that lack them, or whose checksums do not cover every byte.

The digits of the hash stand in a text for remarks: at the end of the file, or in the head of
safetensors. The hash covers the whole file with zeros in the place of the digits.
"""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from sonde.core.errors import StoreError
from sonde.files.durable import AtomicFile, WriteOnly, atomic_file

_MARK, _DIGITS = b"sonde-seal:", 32
BLANK = _MARK.decode() + _DIGITS * "0"
"""What a writer puts into the remarks; ``sealed_file`` turns the zeros into the hash."""
HEAD_SUFFIX = ".safetensors"
MAX_HEAD_BYTES = 64 * 2**20
_TAIL_BYTES, _PIECE_BYTES = 2**20, 2**20


class SealedFile(WriteOnly):
    """A file that is hashed while it is written.

    Parameters
    ----------
    file : AtomicFile
    in_head : bool
        Whether ``BLANK`` is in the first piece that is written, else in the last MiB.
    """

    def __init__(self, file: AtomicFile, in_head: bool) -> None:
        self._file, self._in_head = file, in_head
        self._hash = hashlib.blake2b(digest_size=_DIGITS // 2)
        self._kept, self._begins = bytearray(), 0

    def write(self, content: Any) -> int:
        """Append bytes, or any object with a buffer, and return the number of bytes."""
        view = memoryview(content).cast("B")
        self._file.write(view)
        self._hash.update(view)
        if not (self._in_head and self._kept):
            self._keep(view)
        return len(view)

    def _keep(self, view: memoryview) -> None:
        self._kept += view if self._in_head else view[-_TAIL_BYTES:]
        if not self._in_head and len(self._kept) > 2 * _TAIL_BYTES:
            del self._kept[:-_TAIL_BYTES]
        self._begins = self.tell() - len(self._kept)

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._file.tell()

    def seal(self) -> None:
        """Write the digits of the hash into the file."""
        at = _digits_in(self._kept, self._in_head)
        assert at is not None, "the writer put no BLANK where a reader looks for it"
        self._file.amend(self._begins + at, self._hash.hexdigest().encode())


@contextmanager
def sealed_file(path: Path) -> Generator[SealedFile]:
    """Open a file that gets its name and its hash when the block ends without an exception.

    The writer puts ``BLANK`` into the file once: in the first piece if the name ends in
    .safetensors, else in the last MiB.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    with atomic_file(path) as file:
        sealed = SealedFile(file, path.suffix.lower() == HEAD_SUFFIX)
        yield sealed
        sealed.seal()


def is_sealed(path: Path) -> bool | None:
    """Return whether a file has all its original bytes; None if it contains no hash.

    Raises
    ------
    StoreError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            at = _place(file, path.suffix.lower() == HEAD_SUFFIX)
            if at is None:
                return None
            file.seek(at)
            digits = file.read(_DIGITS)
            return _hash_of(file, at).encode() == digits
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}.") from error


def _place(file: BufferedReader, in_head: bool) -> int | None:
    """Return the position of the hash digits, or None if the file contains no hash."""
    size = file.seek(0, 2)
    start = 0 if in_head else max(0, size - _TAIL_BYTES)
    file.seek(start)
    n_bytes = _TAIL_BYTES
    if in_head:
        n_bytes = min(int.from_bytes(file.read(8), "little"), size, MAX_HEAD_BYTES) + 8
        file.seek(0)
    at = _digits_in(file.read(n_bytes), in_head)
    return None if at is None or start + at + _DIGITS > size else start + at


def _digits_in(part: bytes | bytearray, in_head: bool) -> int | None:
    at = part.find(_MARK) if in_head else part.rfind(_MARK)
    return None if at < 0 else at + len(_MARK)


def _hash_of(file: BufferedReader, at: int) -> str:
    """Return the hash of a file, with zeros at the position of its digits."""
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    file.seek(0)
    left = at
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    digest.update(_DIGITS * b"0")
    file.seek(at + _DIGITS)
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()
