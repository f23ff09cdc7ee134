"""Functions of Python files as texts: docstrings and code, in upper or lower case."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal, final

from sonde.data.sources import Row, Source

LENGTH = 200
CUT = 48
"""Least number of characters before the word within which ``upper`` and ``lower`` end."""
FEWEST = 40
MOST = 512
MOST_OF_FILE = 8

Part = Literal["docstrings", "code", "upper", "lower"]


@final
class Functions(Source):
    """The first characters of functions' docstrings, or of the code after the docstrings.

    All parts come from the same functions, named in the column ``pair``; the file is the group.
    Functions with a short docstring or short code are left out. ``upper`` and ``lower`` are the
    code in capitals and in small letters, cut within a word, so that the next letter goes on in
    the case of the text.

    Parameters
    ----------
    part : {"docstrings", "code", "upper", "lower"}
    root : Path
    files : sequence of str
        Paths below the root.
    """

    def __init__(self, part: Part, root: Path, files: Sequence[str]):
        self._part: Part = part
        self.name = part
        names = sorted(files, key=lambda f: blake2b(f.encode(), digest_size=8).digest())
        self._found = root, tuple(names)

    @cached_property
    def _rows(self) -> list[Row]:
        side = int(self._part in ("docstrings", "upper"))
        return [
            {"text": text, "group": file, "pair": pair, "side": side}
            for file, docstring, code, pair in _first_functions(*self._found)
            if (text := _part_of(self._part, docstring, code))
        ]

    def place(self, index: int) -> str:
        """Return the file and the function."""
        return str(self._rows[index]["pair"])

    def rows(self) -> Iterator[Row]:
        """Yield a part of each function."""
        yield from self._rows

    def take(self, start: int, stop: int) -> list[Row]:
        """Return the part of some functions."""
        return self._rows[start:stop]


def _part_of(part: Part, docstring: str, code: str) -> str:
    """Return the text of a part; empty if no word of the code can be truncated."""
    if part in ("docstrings", "code"):
        return docstring if part == "docstrings" else code
    cut = re.compile(r"(?<=[A-Za-z])(?=[A-Za-z])").search(code, CUT)
    start = code[: cut.start()] if cut else ""
    return start.upper() if part == "upper" else start.lower()


@cache  # commands open both kinds several times
def _first_functions(root: Path, files: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return file, docstring, code and name of the first functions of files."""
    functions: list[tuple[str, str, str, str]] = []
    for file in files:
        text = (root / file).read_bytes().decode("utf-8", "replace")
        for name, docstring, code in list(_functions(text))[:MOST_OF_FILE]:
            functions.append((file, docstring, code, f"{file}:{name}"))
        if len(functions) >= MOST:
            break
    return functions[:MOST]


def _functions(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield line and name, docstring and code of each function that has both."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        first, after = node.body[0], node.body[1]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
            continue
        if not isinstance(first.value.value, str) or first.end_lineno is None:
            continue
        docstring = "".join(lines[first.lineno - 1 : first.end_lineno])[:LENGTH]
        code = "".join(lines[after.lineno - 1 : node.end_lineno])[:LENGTH]
        if min(len(docstring.strip()), len(code.strip())) >= FEWEST:
            yield f"{node.lineno} {node.name}", docstring, code
