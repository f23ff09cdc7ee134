"""Several tables read as one set of rows: a list of files, a pattern of names, or a folder."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int

from sonde.core.errors import InputError, StoreError
from sonde.core.wording import plural
from sonde.data.sources import Row, Source
from sonde.files.places import to_path

WILD = frozenset("*?[")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
PLAIN_TEXT = (".txt", ".text", ".md", ".log")


@final
class SeveralFiles(Source):
    """Source of the rows of several files, in the order of the files.

    Parameters
    ----------
    sources : sequence of Source
        The files in order.
    name : str
        The files in words.
    """

    rows_differ = True

    def __init__(self, sources: Sequence[Source], name: str) -> None:
        self._sources, self.name = tuple(sources), name
        self._counts: list[int | None] = [None] * len(self._sources)

    @property
    def n_bad(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of broken records that were skipped."""
        return sum(source.n_bad for source in self._sources)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of each file."""
        for k, source in enumerate(self._sources):
            n = 0
            for row in source.rows():
                n += 1
                yield row
            self._counts[k] = n

    def take(self, start: int, stop: int) -> list[Row]:
        """Return the rows ``[start, stop)``, counted over all files."""
        out: list[Row] = []
        for k, first, n in self._parts():
            low = max(start, first)
            high = stop if n is None else min(stop, first + n)
            if low < high:
                out += self._sources[k].take(low - first, high - first)
        return out

    def _parts(self) -> Iterator[tuple[int, int, int | None]]:
        """Yield each file that rows are known of: its index, first row and number of rows."""
        first = 0
        for k, n in enumerate(self._counts):
            yield k, first, n
            if n is None:  # the walk stopped in this file: no later row is known
                return
            first += n

    def _found(self, index: int) -> tuple[Source, int]:
        for k, first, n in self._parts():
            if n is None or index < first + n:
                return self._sources[k], index - first
        raise InputError(f"{self.name} has no row {index}.")

    @property
    def base(self) -> Path:
        """The folder of the files, if they are in one folder."""
        bases = {source.base for source in self._sources}
        return bases.pop() if len(bases) == 1 else Path()

    def where(self, index: int) -> str:
        """Return the file and the location in it, for messages."""
        source, own = self._found(index)
        return source.where(own)

    def place(self, index: int) -> str:
        """Return the file and the location in it."""
        source, own = self._found(index)
        return f"{source.name} {source.place(own)}"

    def numbers(self, rows: Int[np.ndarray, "_row"]) -> Int[np.ndarray, "_row"]:
        """Return the indices of rows among all stored items, broken ones included, from 0."""
        result, before = np.array(rows, dtype=np.int64), 0
        for k, first, n in self._parts():
            here = rows >= first if n is None else (rows >= first) & (rows < first + n)
            source = self._sources[k]
            result[here] = before + source.numbers(np.asarray(rows)[here] - first)
            before += (n or 0) + source.n_bad
        return result

    def labels(self, column: str) -> Iterator[Any] | None:
        """Yield a column of every row; None if a file has no cheap way to do it."""
        columns = [source.labels(column) for source in self._sources]
        return None if None in columns else chain.from_iterable(x for x in columns if x is not None)


def table_files(data: Any, suffixes: Sequence[str]) -> list[Path] | None:
    """Return the files that a list, a pattern or a folder names; None for other data.

    Parameters
    ----------
    data : object
        What the user gave as data.
    suffixes : sequence of str
        Endings of tables.

    Raises
    ------
    InputError
        If a pattern matches no file, a listed file is missing, or a list names text files.
    """
    if isinstance(data, list | tuple):
        return _listed(data, suffixes)
    if not isinstance(data, str | Path):
        return None
    path = to_path(data).expanduser()
    numbered = _numbered(str(path))
    if numbered and not path.exists():
        return _listed(numbered, suffixes)
    if path.is_dir():
        return _of_folder(path, suffixes)
    if WILD.isdisjoint(str(path)) or path.exists():
        return None
    first = next(i for i, part in enumerate(path.parts) if not WILD.isdisjoint(part))
    matches = type(path)(*path.parts[:first]).glob("/".join(path.parts[first:]))
    files = sorted(each for each in matches if each.suffix.lower() in suffixes)
    if not files:
        raise InputError(
            f"data: no table matches the pattern {data} (endings: {', '.join(suffixes)}). Check "
            "the folder and the ending."
        )
    return files


def _numbered(name: str) -> list[str]:
    """Return the names that ``part-{000..127}.tar`` stands for; none without braces."""
    match = RANGE.search(name)
    if match is None:
        return []
    digits = len(match[1]) if match[1].startswith("0") else 1
    span = range(int(match[1]), int(match[2]) + 1)
    return [f"{name[: match.start()]}{i:0{digits}}{name[match.end() :]}" for i in span]


def _listed(data: Sequence[Any], suffixes: Sequence[str]) -> list[Path] | None:
    """Return a list of names of tables as files; None if an item is no name of a table."""
    names = [x for x in data if isinstance(x, str | Path) and "\n" not in str(x)]
    if not data or len(names) < len(data):
        return None
    paths = [to_path(name) for name in names]
    kinds = {path.suffix.lower() for path in paths}
    if kinds <= {*PLAIN_TEXT} and all(map(_is_file, paths)):
        raise InputError(
            f"data: got the names of {plural(len(paths), 'text file')} ({paths[0].name}), not "
            "their texts. Pass [Path(name).read_text() for name in names]."
        )
    if not kinds <= {*suffixes}:
        return None
    missing = [path for path in paths if not _is_file(path)]
    if missing and len(missing) < len(paths):
        raise InputError(
            f"data: {len(missing)} of {plural(len(paths), 'file')} do not exist, the first is "
            f"{missing[0]}. Check the names."
        )
    return None if missing else paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except StoreError:  # a service that does not answer
        raise
    except (OSError, ValueError):  # a text, too long for a name
        return False


def _of_folder(path: Path, suffixes: Sequence[str]) -> list[Path] | None:
    """Return the tables of a folder that holds nothing else."""
    entries = [p for p in path.iterdir() if not p.name.startswith((".", "_"))]
    are_tables = all(p.suffix.lower() in suffixes and p.is_file() for p in entries)
    return sorted(entries) if entries and are_tables else None


def open_several(files: Sequence[Path], opened: Callable[[Path], Source]) -> Source:
    """Return one source of several files; a single file is returned as it is."""
    sources = [opened(path) for path in files]
    if len(sources) == 1:
        return sources[0]
    return SeveralFiles(sources, f"{sources[0].name} and {len(sources) - 1} more")
