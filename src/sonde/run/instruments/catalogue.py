"""The catalogue: every exported method by the word that the command line uses.

The families' ``__all__`` are the only list; this module derives everything else from them.
"""

import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from sonde.core.errors import InputError, near
from sonde.core.instrument import Detector, Instrument

FAMILIES = ("measure", "detect")

_SINGLE_WORDS = {"TwoNN": "two_nn", "ViM": "vim", "ReAct": "react", "PaDiM": "padim"}


@dataclass(frozen=True)
class Method:
    """One exported instrument."""

    word: str
    family: str
    cls: type[Instrument]

    @property
    def summary(self) -> str:
        """First line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().splitlines()[0]

    @property
    def description(self) -> str:
        """The class's docstring: what it does, its range, its cost and its parameters."""
        return (inspect.getdoc(self.cls) or "").partition("\n\nExamples\n")[0]

    def json(self) -> dict[str, Any]:
        """Return the entry of ``sonde methods --json``."""
        return {
            "word": self.word,
            "family": self.family,
            "class": self.cls.__name__,
            "summary": self.summary,
            "span": self.cls.span,
            "paper": self.cls.paper,
            "parameters": {f.name: repr(f.default) for f in fields(self.cls)},  # type: ignore[arg-type]
        }


def snake_case(name: str) -> str:
    """Return the command-line word of a class: snake_case with acronyms in one piece.

    Examples
    --------
    >>> [snake_case(n) for n in ("RelativeMahalanobis", "KNN", "LayerCKA", "TwoNN", "NAC")]
    ['relative_mahalanobis', 'knn', 'layer_cka', 'two_nn', 'nac']
    """
    if name in _SINGLE_WORDS:
        return _SINGLE_WORDS[name]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@cache
def methods() -> dict[str, Method]:
    """Return every exported instrument by its word, sorted."""
    found: dict[str, Method] = {}
    for family in FAMILIES:
        module = importlib.import_module(f"sonde.{family}")
        for name in module.__all__:
            cls = getattr(module, name)
            if isinstance(cls, type) and issubclass(cls, Instrument):
                word = snake_case(name)
                found[word] = Method(word, family, cls)
    return dict(sorted(found.items()))


def find(word: str, further: Iterable[type[Instrument]] = ()) -> type[Instrument]:
    """Return the class of a word, or an error with near words."""
    known = {m.word: m.cls for m in methods().values()}
    known.update((snake_case(cls.__name__), cls) for cls in further)
    if word not in known:
        raise InputError(
            f"no method is called {word!r}.{near(word, known)} `sonde methods` lists them all."
        )
    return known[word]


def detectors() -> dict[str, Method]:
    """Return the methods that score rows."""
    return {w: m for w, m in methods().items() if issubclass(m.cls, Detector)}
