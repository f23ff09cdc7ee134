"""Places: object storage behind the methods of ``pathlib.Path``.

``to_path`` turns an address into a ``Place`` and anything else into a ``Path``, so that the code
that reads and commits files need not know which of the two it holds. An object appears whole or
not at all, and a commit is a conditional write (``If-None-Match``): of two writers, one wins.
Nothing here keeps, prints or logs a credential.
"""

import errno
import fnmatch
import io
import os
import re
import stat
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, final

from sonde.core.errors import StoreError
from sonde.files.services import Found, Service, service_of

LOCAL: type[Path] = type(Path())
SCHEMES = ("s3", "gs", "az", "https", "http", "hf")
BARE = frozenset(f"{scheme}:" for scheme in SCHEMES)
"""What ``pathlib`` makes of an address without a bucket: ``s3://`` is no folder called ``s3:``."""
BUFFER_BYTES = 2**20
PIECE_BYTES = 8 * 2**20
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):[\\/]+(?P<rest>.*)", re.DOTALL)
"""A scheme of one letter is a drive of Windows; ``pathlib`` leaves one of the two slashes."""
WITHOUT_SLASHES = re.compile(rf"({'|'.join(SCHEMES)}):(?=[^\\/])", re.IGNORECASE)
"""An address such as ``s3:bucket``, which ``pathlib`` takes for a file of that name."""

_private: dict[str, str] = {}
"""Queries of signed addresses, and names with passwords, by the address without them."""


def to_path(path: Path | str) -> Path:
    """Return a place for an address of a facts scheme, and a path for anything else.

    Parameters
    ----------
    path : path or str
        A path, or an address such as ``s3://bucket/name``. A signed address keeps its query for
        this process alone; messages show the address without it.

    Raises
    ------
    StoreError
        If the address has a scheme and no slashes, such as ``s3:bucket/name``.

    Examples
    --------
    >>> to_path("s3://bucket/rows/store.json").parent
    Place('s3://bucket/rows')
    >>> to_path("rows") == Path("rows")
    True
    """
    match = None if isinstance(path, Place) else ADDRESS.match(str(path))
    require_slashes(path)
    if str(path).lower() in BARE:
        return Place(str(path).lower())
    if match is None or match["scheme"].lower() not in SCHEMES:
        return path if isinstance(path, Path) else Path(path)
    scheme, rest = match["scheme"].lower(), match["rest"].replace("\\", "/")
    if scheme in ("http", "https"):
        rest = _without_secrets(scheme, rest)
    return Place(f"{scheme}://{rest}")


def require_slashes(path: Path | str) -> None:
    """Raise if a path is an address without slashes, for which a local file would be written.

    Parameters
    ----------
    path : path or str
        A path or an address.

    Raises
    ------
    StoreError
        If it starts with a scheme and a colon, without a slash after it.
    """
    match = None if isinstance(path, Place) else WITHOUT_SLASHES.match(str(path))
    if match is not None:
        scheme, rest = match[1].lower(), str(path)[match.end() :]
        raise StoreError(
            f"{scheme}:{rest}: expected an address with two slashes or a path, got neither. Write "
            f"{scheme}://{rest}, or {Path.cwd() / str(path)} for a local file of that name."
        )


def _without_secrets(scheme: str, rest: str) -> str:
    whole = rest
    host, slash, path = rest.partition("/")
    rest = f"{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
    if rest != whole:
        _private[f"{scheme}://{rest}"] = whole
    return rest


@final
class Place(LOCAL):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """An object, or all objects below a name, in a bucket or on a server.

    It is a ``Path``, so that code for files works on it as it is: names, parents and suffixes are
    those of ``pathlib``, and the methods that touch a disk ask the service instead. A folder is
    the objects below its name; making and removing an empty folder does nothing.
    """

    __slots__ = ("_facts",)

    def __str__(self) -> str:
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}" if rest else scheme

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    def as_posix(self) -> str:
        """Return the address."""
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        whole = _private.get(str(self))
        return to_path, (str(self) if whole is None else f"{self.scheme}://{whole}",)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    @property
    def scheme(self) -> str:
        """The scheme, such as ``s3``."""
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """The name of the object in its bucket."""
        return "/".join(self.parts[2:])

    @property
    def _service(self) -> Service:
        if len(self.parts) < 2:
            raise StoreError(f"{self}//: expected {self.scheme}://BUCKET/NAME, got no bucket.")
        return service_of(self.scheme, self.parts[1])

    def _asked_key(self) -> str:
        if self.scheme not in ("http", "https"):
            return self.key
        whole = _private.get(str(self))
        return str(self) if whole is None else f"{self.scheme}://{whole}"

    @property
    def parents(self) -> Any:
        """The folders above, up to the bucket."""
        return tuple(above for above in super().parents if len(above.parts) > 1)

    def relative_to(self, *other: Any, **how: Any) -> PurePosixPath:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the name below another place."""
        return PurePosixPath(*super().relative_to(*other, **how).parts)

    def is_absolute(self) -> bool:
        """Return True."""
        return True

    def absolute(self) -> "Place":
        """Return the place itself."""
        return self

    def resolve(self, strict: bool = False) -> "Place":
        """Return the place itself: object storage has no links."""
        return self

    def expanduser(self) -> "Place":
        """Return the place itself."""
        return self

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def samefile(self, other_path: Any) -> bool:
        """Return whether two addresses are equal."""
        return self == to_path(other_path)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size and time of an object, or the mode of a folder.

        Raises
        ------
        FileNotFoundError
            If there is no object of that name, and none below it.
        StoreError
            If the service does not answer.
        """
        facts: Found | None = getattr(self, "_facts", None)
        if facts is None and len(self.parts) > 2:
            facts = self._service.head(self._asked_key(), str(self))
        if facts is not None:
            return _stat_of(facts)
        if len(self.parts) > 1 and self._service.any_below(self.key, str(self)):
            return _stat_of(None)
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))

    def version(self) -> str:
        """Return the tag that the service gives to the bytes of an object, or ""."""
        facts: Found | None = getattr(self, "_facts", None)
        facts = facts or self._service.head(self._asked_key(), str(self))
        return "" if facts is None else facts.version

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is an object of that name, or one below it."""
        return self._mode() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is an object of that name."""
        return stat.S_ISREG(self._mode() or 0)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is an object below that name."""
        return stat.S_ISDIR(self._mode() or 0)

    def _mode(self) -> int | None:
        try:
            return self.stat().st_mode
        except FileNotFoundError:
            return None

    def iterdir(self) -> Generator[Path]:
        """Yield the objects and folders directly below, with sizes; none if there are none."""
        for name, facts in self._service.below(self.key, str(self), recursive=False):
            yield self._child(name, facts)

    def _child(self, name: str, facts: Found | None) -> "Place":
        child = self / name
        if facts is not None:
            child._facts = facts
        return child

    def glob(self, pattern: str, **options: Any) -> Generator[Path]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield the objects whose names below this place match a pattern."""
        *fixed, last = _split(pattern)
        home = self.joinpath(*fixed)
        wanted = last.split("/")
        for name, facts in home._service.below(home.key, str(home), recursive=len(wanted) > 1):
            parts = name.split("/")
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield home._child(name, facts)

    def rglob(self, pattern: str, **options: Any) -> Generator[Path]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield the objects at any depth whose names end in a pattern."""
        for name, facts in self._service.below(self.key, str(self), recursive=True):
            if PurePosixPath(name).match(pattern):
                yield self._child(name, facts)

    def open(self, mode: str = "r", buffering: int = -1, *text: Any, **how: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Open an object for reading; what is read is asked for in ranges.

        Raises
        ------
        StoreError
            If the mode writes: objects are written as a whole, by ``durable.atomic_file``.
        """
        if not set(mode) <= set("rbt"):
            raise StoreError(f"{self}: expected to be read, got mode {mode!r}.")
        size = self.stat()
        if stat.S_ISDIR(size.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(self))
        file = io.BufferedReader(_Ranges(self, size.st_size), BUFFER_BYTES)
        return file if "b" in mode else io.TextIOWrapper(file, *text, **how)

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of spans ``(start, stop)``, asked for in parallel.

        Spans are asked for as they are: what lies between them is not transferred.
        """
        return self._service.ranges(self._asked_key(), spans, str(self))

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield a long span in parts, each with its start, several in parallel."""
        spans = [(at, min(at + PIECE_BYTES, stop)) for at in range(start, stop, PIECE_BYTES)]
        for i in range(0, len(spans), 8):
            held = spans[i : i + 8]
            yield from zip((a for a, _ in held), self.ranges(held), strict=True)

    def read_bytes(self) -> bytes:
        """Return the bytes of an object."""
        return self._service.get(self._asked_key(), str(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the text of an object."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def upload(self, source: Path, once: bool = False) -> None:
        """Write a local file as this object.

        Parameters
        ----------
        source : Path
            The local file.
        once : bool, default=False
            Leave an existing object of equal bytes as it is, and raise for one of other bytes.

        Raises
        ------
        StoreError
            If it cannot be written, or another writer was first with other bytes.
        """
        if once:
            content = source.read_bytes()
            if not self.create(content) and self.read_bytes() != content:
                raise StoreError(
                    f"{self}: another writer committed other bytes under this name. Its bytes "
                    "stay. Write to another place, or wait until it has ended."
                )
            return
        self._service.put(self.key, source, str(self))

    def create(self, content: bytes) -> bool:
        """Write an object unless one has its name; return whether it was written."""
        return self._service.create(self.key, content, str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object; a missing object is not an error."""
        self._service.delete([self.key], str(self))

    def remove_below(self) -> None:
        """Remove every object below this name."""
        keys = [f"{self.key}/{name}" for name, _ in self._service.below(self.key, str(self), True)]
        self._service.delete(keys, str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is the objects below its name."""

    def rmdir(self) -> None:
        """Do nothing: a folder is the objects below its name."""

    def require_writable(self) -> None:
        """Raise before any work if nothing can be written here.

        Raises
        ------
        StoreError
            If the scheme is read only, the bucket does not exist, or access is refused.
        """
        self._service.require_writable(str(self))
        self._service.any_below(self.key, str(self))


def _split(pattern: str) -> list[str]:
    """Return the parts of a pattern without wildcards, and the rest as one text."""
    parts = pattern.split("/")
    n = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
    return [*parts[:n], "/".join(parts[n:])]


def _stat_of(found: Found | None) -> os.stat_result:
    if found is None:
        return os.stat_result((stat.S_IFDIR, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    when = int(found.modified)
    return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, found.size, when, when, when))


class _Ranges(io.RawIOBase):
    """An object as a file: each read is one range, a long read several in parallel."""

    def __init__(self, place: Place, size: int) -> None:
        self._place, self._size, self._at = place, size, 0
        self.name = str(place)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        for start, piece in self._place.pieces(self._at, stop):
            view[start - self._at : start - self._at + len(piece)] = piece
        n_bytes, self._at = max(stop - self._at, 0), max(stop, self._at)
        return n_bytes

    def readall(self) -> bytes:
        read = partial(self.read, max(self._size - self._at, 0))
        return read() or b""
