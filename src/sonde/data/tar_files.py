"""WebDataset shards: tar files in which members of equal names are the columns of a row."""

import io
import json
import tarfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, final

import numpy as np

from sonde.core.errors import InputError, reason_of
from sonde.data.folders import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from sonde.data.sources import Row, Source

WHOLE_NUMBERS = ("cls", "cls2", "id", "index", "inx")
TEXTS = ("txt", "text", "transcript", "caption")
NAMES = {"txt": "text", "cls": "label"}
"""Columns of suffixes that are no name of a column themselves."""
Member = tuple[str, int, int]
"""Name without the row's key, offset and size."""


def _numbers() -> "array[int]":
    return array("q")


@dataclass
class _Index:
    """Key and members of each row: the first member's number, and offset, size, name of each."""

    keys: list[str] = field(default_factory=list[str])
    firsts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    offsets: "array[int]" = field(default_factory=_numbers)
    sizes: "array[int]" = field(default_factory=_numbers)
    names: list[str] = field(default_factory=list[str])
    kinds: "array[int]" = field(default_factory=_numbers)
    number_of: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, key: str, members: list[Member]) -> None:
        """Add a row."""
        for name, offset, size in members:
            if name not in self.number_of:
                self.number_of[name] = len(self.names)
                self.names.append(name)
            self.kinds.append(self.number_of[name])
            self.offsets.append(offset)
            self.sizes.append(size)
        self.keys.append(key)
        self.firsts.append(len(self.offsets))

    def members(self, row: int) -> list[Member]:
        """Return the members of a row."""
        span = range(self.firsts[row], self.firsts[row + 1])
        return [(self.names[self.kinds[i]], self.offsets[i], self.sizes[i]) for i in span]


@final
class TarFile(Source):
    """An uncompressed tar file as WebDataset writes it, on disk or in object storage.

    Neighbouring members with equal names up to the first dot are one row. An image is the column
    ``image``, a recording ``audio``, ``txt`` the column ``text``, ``cls`` the column ``label``,
    ``npy`` the column ``x``, and the values of a ``json`` object are columns of their own. A member
    ``key.seg.png`` is the column ``seg``. Other members, pickles among them, are left out.

    Parameters
    ----------
    path : Path
        The file.
    """

    rows_differ = True

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._index, self._is_whole = _Index(), False

    @property
    def base(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def where(self, index: int) -> str:
        """Return file and row for messages."""
        return f"{self.name} {self.place(index)}"

    def place(self, index: int) -> str:
        """Return the name that the members of a row have in common."""
        return f"sample {self._index.keys[index]}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows and record where their members are."""
        index = _Index()
        if not self._is_whole:
            self._index = index
        with self.path.open("rb") as file:
            for key, members in self._samples(file):
                index.add(key, members)
                yield self._row(file, key, members)
        self._index, self._is_whole = index, True

    def take(self, start: int, stop: int) -> list[Row]:
        """Read the members of some rows again."""
        index = self._index
        with self.path.open("rb") as file:
            return [self._row(file, index.keys[i], index.members(i)) for i in range(start, stop)]

    def labels(self, column: str) -> Iterator[Any]:
        """Yield a column of every row without reading images and recordings."""
        with self.path.open("rb") as file:
            for key, members in self._samples(file):
                small = [m for m in members if _column(m[0])[0] not in ("image", "audio")]
                yield self._row(file, key, small, is_part=True).get(column)

    def _samples(self, file: io.BufferedIOBase) -> Iterator[tuple[str, list[Member]]]:
        """Yield key and members of each row, in the order of the file."""
        key, members = "", list[Member]()
        for info in self._members(file):
            path = PurePosixPath(info.name)
            stem, _, name = path.name.partition(".")
            if not info.isreg() or not stem or stem.startswith("__"):
                continue
            own = str(path.parent / stem)
            if members and (own != key or name in [m[0] for m in members]):
                yield key, members
                members = []
            key = own
            members.append((name, info.offset_data, info.size))
        if members:
            yield key, members

    def _members(self, file: io.BufferedIOBase) -> Iterator[tarfile.TarInfo]:
        """Yield each member's header; damaged or cut files raise an InputError."""
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  else they grow
                    yield info
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
        except tarfile.TarError as error:
            raise InputError(
                f"{self.path} cannot be read as an uncompressed tar file: {reason_of(error)}. "
                "Unpack it, or write the shard again."
            ) from None
        if not end or end.strip(b"\0"):
            raise InputError(
                f"{self.path} is damaged or cut: expected the end mark of a tar file at byte "
                f"{tar.offset:,}, got {'the end of the file' if not end else 'other bytes'}. Write "
                "the shard again."
            )

    def _row(
        self, file: io.BufferedIOBase, key: str, members: list[Member], is_part: bool = False
    ) -> Row:
        row: dict[str, Any] = {}
        for name, offset, size in members:
            column, decode = _column(name)
            if decode is None:
                continue
            file.seek(offset)
            content = file.read(size)
            if len(content) < size:
                raise InputError(f"{self.path} ends inside of {key}.{name}. Write the shard again.")
            try:
                value = decode(content, f"{key}.{name}")
            except (ValueError, EOFError) as error:
                raise InputError(
                    f"{self.path}: {key}.{name} cannot be read: {reason_of(error)}. Write the "
                    "shard again."
                ) from None
            row.update(value if column == "" else {column: value})
        if not row and not is_part:
            raise InputError(
                f"{self.path}: sample {key} has no member that is read, only "
                f"{', '.join(m[0] or 'one without ending' for m in members)}. Expected an image, "
                "a recording, txt, json, npy or cls."
            )
        return row


def _column(name: str) -> tuple[str, Callable[[bytes, str], Any] | None]:
    """Return the column of a member, "" for a json object, and the function that decodes it."""
    own, _, suffix = name.lower().rpartition(".")
    if f".{suffix}" in IMAGE_SUFFIXES:
        return own or "image", _file
    if f".{suffix}" in AUDIO_SUFFIXES:
        return own or "audio", _file
    if suffix == "npy":
        return own or "x", _array
    if suffix == "json":
        return own, _object if not own else _json
    if suffix in WHOLE_NUMBERS:
        return own or NAMES.get(suffix, suffix), _number
    return own or NAMES.get(suffix, suffix), _text if suffix in TEXTS else None


def _file(content: bytes, name: str) -> dict[str, Any]:
    return {"bytes": content, "path": name}


def _array(content: bytes, name: str) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def _json(content: bytes, name: str) -> Any:
    return json.loads(content)


def _object(content: bytes, name: str) -> dict[str, Any]:
    value = json.loads(content)
    return value if isinstance(value, dict) else {"json": value}


def _text(content: bytes, name: str) -> str:
    return content.decode("utf-8")


def _number(content: bytes, name: str) -> int | str:
    text = content.decode("utf-8").strip()
    return int(text) if text.lstrip("-").isdigit() else text
