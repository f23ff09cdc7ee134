"""The catalogue: every exported method by the word that the command line uses.

The families' ``__all__`` and the entry points ``sonde.methods`` of other distributions are the only
lists; all else is derived from them.
"""

import importlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from sonde.core.errors import InputError, SondeWarning, near
from sonde.core.instrument import Detector, Instrument
from sonde.run.instruments.listing import FAMILIES, PLUG_IN, PLUG_INS, described, snake_case


@dataclass(frozen=True)
class Method:
    """One exported instrument."""

    word: str
    family: str
    cls: type[Instrument]
    distribution: str = "sonde"

    @property
    def summary(self) -> str:
        """First line of the class's docstring."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """The class's docstring: what it does, its range, its cost and its parameters."""
        return described(self.cls.__doc__)

    def json(self) -> dict[str, Any]:
        """Return the entry of ``sonde methods --json``."""
        return {
            "word": self.word,
            "family": self.family,
            "distribution": self.distribution,
            "class": self.cls.__name__,
            "summary": self.summary,
            "span": self.cls.span,
            "paper": self.cls.paper,
            "parameters": {f.name: repr(f.default) for f in fields(self.cls)},  # type: ignore[arg-type]
        }


def word_of_class(cls: type[Instrument]) -> str:
    """Return the command-line word of a method."""
    return cls.word or snake_case(cls.__name__)


def word_of_name(name: str) -> str:
    """Return the command-line word of the method whose class has this name."""
    return next((m.word for m in methods().values() if m.cls.__name__ == name), snake_case(name))


def distribution_of(cls: type[Instrument]) -> str | None:
    """Return the other distribution that announces a method; None for ours and for none."""
    found = next((m for m in methods().values() if m.cls is cls), None)
    return None if found is None or found.distribution == "sonde" else found.distribution


@cache
def methods() -> dict[str, Method]:
    """Return every method by its word, sorted: ours, and those that other packages announce."""
    found: dict[str, Method] = {}
    for family in FAMILIES:
        module = importlib.import_module(f"sonde.{family}")
        for name in module.__all__:
            cls = getattr(module, name)
            if isinstance(cls, type) and issubclass(cls, Instrument):
                word = word_of_class(cls)
                found[word] = Method(word, family, cls)
    return dict(sorted({**_plug_ins(frozenset(found)), **found}.items()))


def _plug_ins(taken: frozenset[str]) -> dict[str, Method]:
    """Return the methods of other distributions; one that cannot be used is said and left out."""
    found: dict[str, Method] = {}
    for point in entry_points(group=PLUG_INS):
        name = point.dist.name if point.dist is not None else point.value
        try:
            cls = point.load()
        except Exception as error:  # somebody else's code may fail in any way
            _leave_out(point.name, name, f"it cannot be imported ({error!r})")
            continue
        if not (isinstance(cls, type) and issubclass(cls, Instrument)):
            _leave_out(point.name, name, "it is not a subclass of sonde.core.Instrument")
        elif point.name in taken | found.keys():
            _leave_out(point.name, name, "another method has this word")
        elif point.name != word_of_class(cls):
            _leave_out(point.name, name, f"its class is called {word_of_class(cls)!r} in files")
        else:
            found[point.name] = Method(point.name, PLUG_IN, cls, name)
    return found


def _leave_out(word: str, distribution: str, why: str) -> None:
    text = f"sonde methods: {word!r} of {distribution} is left out: {why}."
    warnings.warn(text, SondeWarning, stacklevel=4)


def find(word: str, further: Iterable[type[Instrument]] = ()) -> type[Instrument]:
    """Return the class of a word, or an error with near words."""
    known = {m.word: m.cls for m in methods().values()}
    known.update((word_of_class(cls), cls) for cls in further)
    if word not in known:
        raise InputError(
            f"no method is called {word!r}.{near(word, known)} `sonde methods` lists them all."
        )
    return known[word]


def detectors() -> dict[str, Method]:
    """Return the methods that score rows."""
    return {w: m for w, m in methods().items() if issubclass(m.cls, Detector)}
