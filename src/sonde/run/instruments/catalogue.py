"""The catalogue of methods by word; looking up a word imports the file of that method alone.

Where a method's class is defined is read from the text of the families' ``__init__.pyi``, which
lists every export. Other distributions announce methods by the entry points ``sonde.methods``.
"""

import importlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeGuard

import sonde
from sonde.core._lazy import homes_of
from sonde.core.errors import InputError, SondeWarning, near
from sonde.core.instrument import Detector, Instrument
from sonde.run.instruments.families import FAMILIES, PLUG_IN, PLUG_INS, described, snake_case

_RANGE = re.compile(r"^ *Range  +(\S.*?)(?=\n *[A-Z]\w+  +\S|\n *\n|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Home:
    """Family, module and class name of an exported class."""

    family: str
    module: str
    name: str

    def load(self) -> Any:
        """Import the module and return the class."""
        return getattr(importlib.import_module(self.module), self.name)


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
    def reading(self) -> str:
        """How to read the value: its range, its direction and its null, from the docstring."""
        text = _RANGE.search(self.cls.__doc__ or "")
        return "" if text is None else " ".join(text[1].split())

    @property
    def description(self) -> str:
        """The class's docstring: what it does, its range, its cost and its parameters."""
        return described(self.cls.__doc__)


@cache
def homes() -> dict[str, Home]:
    """Return the home of every exported class by its word, without importing a class.

    A word is the name of the class's file if that spells the class, else the class's name in
    snake_case: ``padim`` for PaDiM in ``padim.py``, ``paired_leace`` for PairedLEACE.
    """
    root = Path(sonde.__file__).parent
    by_word: dict[str, Home] = {}
    for family in FAMILIES:
        for name, (module, own) in homes_of(root / family / "__init__.py").items():
            if name[0].isupper():
                stem = module.rpartition(".")[2]
                spelled = stem.replace("_", "") == name.lower()
                by_word.setdefault(stem if spelled else snake_case(name), Home(family, module, own))
    return by_word


def method_of(word: str) -> Method | None:
    """Return the method with this word, from sonde or a plug-in, or None."""
    home = homes().get(word)
    cls = None if home is None else home.load()
    if home is not None and cls is not None and _is_instrument(cls):
        return Method(word, home.family, cls)
    return _announced().get(word)


def find(word: str, further: Iterable[type[Instrument]] = ()) -> type[Instrument]:
    """Return the class of a word; raise with similar words if it is unknown."""
    own = {word_of_class(cls): cls for cls in further}
    if word in own:
        return own[word]
    method = method_of(word)
    if method is None:
        words = [*methods(), *own]
        raise InputError(
            f"no method is called {word!r}.{near(word, words)} `sonde methods` lists them all."
        )
    return method.cls


def word_of_class(cls: type[Instrument]) -> str:
    """Return the command-line word of a method."""
    return cls.word or snake_case(cls.__name__)


def word_of_name(name: str) -> str:
    """Return the command-line word of the method whose class has this name."""
    ours = (word for word, home in homes().items() if home.name == name)
    theirs = (m.word for m in _announced().values() if m.cls.__name__ == name)
    return next(ours, None) or next(theirs, snake_case(name))


def distribution_of(cls: type[Instrument]) -> str | None:
    """Return the distribution that provides a method; None if it is sonde or unknown."""
    return next((m.distribution for m in _announced().values() if m.cls is cls), None)


@cache
def methods() -> dict[str, Method]:
    """Import every method and return them sorted by word, including those of other packages."""
    ours = {
        word: Method(word, home.family, cls)
        for word, home in homes().items()
        if _is_instrument(cls := home.load())
    }
    return dict(sorted({**_announced(), **ours}.items()))


def detectors() -> dict[str, Method]:
    """Return the methods that score rows."""
    return {w: m for w, m in methods().items() if issubclass(m.cls, Detector)}


def _is_instrument(found: Any) -> TypeGuard[type[Instrument]]:
    return isinstance(found, type) and issubclass(found, Instrument)


@cache
def _announced() -> dict[str, Method]:
    """Return the methods of other distributions; skip unusable methods with a warning."""
    announced: dict[str, Method] = {}
    for point in entry_points(group=PLUG_INS):
        name = point.dist.name if point.dist is not None else point.value
        try:
            cls = point.load()
        except Exception as error:  # somebody else's code may fail in any way
            _leave_out(point.name, name, f"it cannot be imported ({error!r})")
            continue
        home = homes().get(point.name)
        if not _is_instrument(cls):
            _leave_out(point.name, name, "it is not a subclass of sonde.core.Instrument")
        elif point.name in announced or (home is not None and _is_instrument(home.load())):
            _leave_out(point.name, name, "another method has this word")
        elif point.name != word_of_class(cls):
            _leave_out(point.name, name, f"its class is called {word_of_class(cls)!r} in files")
        else:
            announced[point.name] = Method(point.name, PLUG_IN, cls, name)
    return announced


def _leave_out(word: str, distribution: str, why: str) -> None:
    text = f"sonde methods: {word!r} of {distribution} is left out: {why}."
    warnings.warn(text, SondeWarning, stacklevel=4)
