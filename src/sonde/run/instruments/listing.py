"""What ``sonde methods`` prints, read from the files of the families: no method is imported.

An import of all methods, and of torch before them, takes seconds; the first sentence of a docstring
does not. Who needs the classes asks ``catalogue``.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Literal

import sonde

FAMILIES = ("measure", "detect", "edit", "explain", "compress", "layers")
PLUG_IN = "plug-in"

PLUG_INS = "sonde.methods"
"""Group of entry points by which other distributions announce methods: ``word = package:Class``."""
NOUNS = ("core", "weights", "tap", *FAMILIES)
"""Rooms in which the bases of methods stand."""
ACT = frozenset({"Edit", "Rewrite", "Decode", "Module", "Explainer", "Judge"})
"""Bases of what is made and called in Python."""
_CLASS = re.compile(
    r'^class (\w+)(?:\(([^)]*)\))?:\n    (r?""".*?""")(.*?)(?=^\S|\Z)', re.MULTILINE | re.DOTALL
)
_WORD = re.compile(r'^    word: [^=]*= "(.+)"$', re.MULTILINE)
_PAPER = re.compile(r'^    paper: [^=]*= "(.+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Listed:
    """One exported method: what it is called, and its docstring without its examples.

    ``kind`` is ``"fit"`` where ``sonde fit`` knows the word, ``"call"`` where it is a class that is
    made and called in Python, such as an edit.
    """

    name: str
    family: str
    kind: Literal["fit", "call"]
    description: str

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.description.partition("\n")[0]


@dataclass(frozen=True)
class _Class:
    bases: tuple[str, ...]
    docstring: str
    body: str


def snake_case(name: str) -> str:
    """Return a class's name in snake_case, with acronyms in one piece.

    Examples
    --------
    >>> [snake_case(n) for n in ("RelativeMahalanobis", "KNN", "LayerCKA", "TwoNN", "NAC")]
    ['relative_mahalanobis', 'knn', 'layer_cka', 'two_nn', 'nac']
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def described(docstring: str | None) -> str:
    """Return what a docstring says before its examples."""
    return cleandoc(docstring or "").partition("\n\nExamples\n")[0]


@cache
def listed() -> tuple[Listed, ...]:
    """Return every method that sonde exports, by family, those to fit first, sorted by name."""
    root = Path(sonde.__file__).parent
    texts = [path.read_text() for room in NOUNS for path in sorted((root / room).rglob("*.py"))]
    classes = {
        name: _Class(_names(bases), docstring, body)
        for text in texts
        for name, bases, docstring, body in _CLASS.findall(text)
    }
    found: list[Listed] = []
    for family in FAMILIES:
        exported = _exported((root / family / "__init__.py").read_text())
        made = [_listed(name, family, classes) for name in exported if name in classes]
        found += sorted((m for m in made if m), key=lambda m: (m.kind != "fit", m.name))
    return tuple(found)


def _names(bases: str) -> tuple[str, ...]:
    """Return the names of bases without their modules and type parameters."""
    plain = re.sub(r"\[.*?\]|\w+=\w+", "", bases)
    return tuple(base.strip().rpartition(".")[2] for base in plain.split(",") if base.strip())


def _exported(text: str) -> list[str]:
    found = re.search(r"^__all__ = (\[.*?\])", text, re.MULTILINE | re.DOTALL)
    return [] if found is None else ast.literal_eval(found[1])


def _listed(name: str, family: str, classes: dict[str, _Class]) -> Listed | None:
    """Return the entry of a class; None where it is no method but a base, a result or a part."""
    above = _ancestors(name, classes)
    bodies = [classes[one].body for one in (name, *above) if one in classes]
    docstring = described(ast.literal_eval(classes[name].docstring))
    if "Instrument" in above:
        word = next((found[1] for body in bodies if (found := _WORD.search(body))), None)
        return Listed(word or snake_case(name), family, "fit", docstring)
    is_method = bool(ACT & {*above}) or any(map(_PAPER.search, bodies))
    if not is_method or "Result" in above or "@abstractmethod" in classes[name].body:
        return None
    return Listed(name, family, "call", docstring)


def _ancestors(name: str, classes: dict[str, _Class]) -> list[str]:
    """Return the names of all bases of a class, the nearest first."""
    found = list(classes[name].bases)
    for base in found:
        found += [b for b in (classes[base].bases if base in classes else ()) if b not in found]
    return found
