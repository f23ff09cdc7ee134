"""Models shipped with the package, their training data, and parts of the data."""

import os
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, final, get_args

import numpy as np

from sonde.core.errors import InputError, near
from sonde.core.random_state import kept_random_state
from sonde.data.functions import Functions, Part
from sonde.data.sources import Row, Source

PREFIX = "sonde:"
SHIPPED = ("digits", "stdlib")
PIECES = 512

_DIGITS_TEST = (2, 5, 8)
_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "__pycache__"}
)


def is_shipped(name: str) -> bool:
    """Return whether a word names a shipped model or shipped data."""
    return name.startswith(PREFIX)


def model_directory(name: str) -> Path:
    """Return the directory of a shipped model, ``sonde:digits`` or ``sonde:stdlib``."""
    short = name.removeprefix(PREFIX)
    if short not in SHIPPED:
        names = [PREFIX + s for s in SHIPPED]
        raise InputError(
            f"load: no shipped model {name!r}, only {' and '.join(names)}.{near(name, names)}"
        )
    return Path(__file__).parent / "models" / short


def shipped_source(name: str, wanted: str | None = None) -> tuple[Source, int | None]:
    """Return shipped data and the number of examples sampled (None = all).

    ``sonde:digits``, ``sonde:docstrings``, ``sonde:code``, ``sonde:upper`` and ``sonde:lower``,
    each ``[/train|/test]``, and ``sonde:stdlib[/train|/test|/train-all|/test-all]``, also with a
    colon before the split. Without a split in the name: the wanted split, else the test split.
    """
    both = ("train", "test")
    splits = {"digits": both, "stdlib": (*both, "train-all", "test-all")}
    splits |= dict.fromkeys(get_args(Part), both)
    listed = [f"{PREFIX}{data}/{split}" for data, names in splits.items() for split in names]
    data, _, given = name.removeprefix(PREFIX).replace(":", "/").partition("/")
    split = given or wanted or "test"
    if split not in splits.get(data, ()):
        raise InputError(
            f"data: no shipped data {name!r}, only {', '.join(listed)}.{near(name, listed)}"
        )
    is_whole = split.endswith("-all")
    source: Source
    if data == "digits":
        source = Digits(split)
    elif data == "stdlib":
        source = StandardLibrary(split.removesuffix("-all"))
    else:
        files = [f for f in library_files() if is_test_file(f) == (split == "test")]
        source = Functions(cast("Part", data), library_root(), files)
    source.name = f"{PREFIX}{data}/{split}"
    n_picked = PIECES if data == "stdlib" and not is_whole else None
    return source.of_split(split, splits[data], bool(given)), n_picked


@final
class Digits(Source):
    """The 8 x 8 handwritten digits of scikit-learn as 8-bit grey images.

    Rows whose index within their class ends in 2, 5 or 8 are ``test``, the others ``train``.

    Parameters
    ----------
    split : str
        Part of the data: ``train`` or ``test``.
    """

    def __init__(self, split: str) -> None:
        self.name, self._split = f"sonde:digits/{split}", split

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels, is_test = load_digits()
        chosen = is_test if self._split == "test" else ~is_test
        return pixels[chosen], labels[chosen]

    def rows(self) -> Iterator[Row]:
        """Yield images with their digit."""
        yield from self.take(0, len(self._arrays[1]))

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some images."""
        from PIL import Image

        pixels, labels = self._arrays
        return [
            {"image": Image.fromarray(x), "label": int(y)}
            for x, y in zip(pixels[start:stop], labels[start:stop], strict=True)
        ]


def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images as 8-bit values, their digits, and a mask of held-out images."""
    values, labels = _digits_table()
    pixels = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rank = np.zeros(len(labels), dtype=np.int64)
    for digit in range(10):
        is_digit = labels == digit
        rank[is_digit] = np.arange(is_digit.sum())
    return pixels, labels, np.isin(rank % 10, _DIGITS_TEST)


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits from its file, since importing the package is slow."""
    spec = find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).with_name("datasets") / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    with kept_random_state():
        from sklearn import datasets

    bunch: Any = datasets.load_digits()
    return bunch.data, bunch.target.astype(np.int64)


@final
class StandardLibrary(Source):
    """The source files of the running Python's standard library, one text per file.

    A file is ``test`` if a hash of its relative path says so (about one in ten).

    Parameters
    ----------
    split : str
        Part of the data: ``train`` or ``test``.
    """

    def __init__(self, split: str) -> None:
        self.name = f"sonde:stdlib/{split}"
        files = library_files()
        self._root = library_root()
        self._files = [f for f in files if is_test_file(f) == (split == "test")]
        if not self._files:
            raise InputError(f"data: no {split} file in the standard library at {self._root}.")

    def where(self, index: int) -> str:
        """Return the file name for messages."""
        return str(self._root / self._files[index])

    def place(self, index: int) -> str:
        """Return the file's path in the library."""
        return self._files[index]

    def rows(self) -> Iterator[Row]:
        """Yield the text of each file, which is also its group."""
        for file in self._files:
            yield self._row(file)

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some files."""
        return [self._row(file) for file in self._files[start:stop]]

    def _row(self, file: str) -> Row:
        return {"text": (self._root / file).read_bytes().decode("utf-8", "replace"), "group": file}


def library_root() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files() -> list[str]:
    """Return the sorted relative paths of the shipped model's training sources.

    Raises
    ------
    InputError
        If the running Python comes without sources.
    """
    root = library_root()
    files: list[str] = []
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in _LEFT_OUT]
        paths = (Path(folder, name) for name in names if name.endswith(".py"))
        files += [p.relative_to(root).as_posix() for p in paths if p.stat().st_size > 0]
    files.sort()
    if not files:
        raise InputError(
            f"data: the running Python has no sources of its standard library ({root}). "
            "Use a Python that has them, or other data."
        )
    return files


def is_test_file(file: str) -> bool:
    """Return whether a file is held out, by a hash of its path."""
    word = blake2b(file.encode(), digest_size=8).digest()
    return int.from_bytes(word, "little") % 10 == 0
