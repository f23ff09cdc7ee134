"""The catalogue: every exported method with its kind, and the methods to fit by their words.

The families' ``__all__`` and the entry points ``sonde.methods`` of other distributions are the only
lists; all else is derived from them.
"""

import importlib
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from torch import nn

from sonde.core.cache_packing import CachePacking
from sonde.core.cache_rule import CacheRule
from sonde.core.codec import Codec
from sonde.core.edit import Edit
from sonde.core.errors import InputError, SondeWarning, near
from sonde.core.explainer import Explainer, Judge
from sonde.core.instrument import Detector, Instrument
from sonde.core.result import Result
from sonde.core.shift import Shift
from sonde.core.token_rule import TokenRule
from sonde.run.instruments.families import (
    FAMILIES,
    FITTED,
    PLUG_IN,
    PLUG_INS,
    Listed,
    described,
    snake_case,
)
from sonde.tap import Decode
from sonde.weights import MergeRule, Rewrite

KINDS: dict[str, type] = {
    "detector": Detector,
    "shift": Shift,
    "measure": Instrument,
    "edit": Edit,
    "decoding rule": Decode,
    "rewrite": Rewrite,
    "merge rule": MergeRule,
    "cache rule": CacheRule,
    "cache packing": CachePacking,
    "token rule": TokenRule,
    "codec": Codec,
    "judge": Judge,
    "explainer": Explainer,
    "layer": nn.Module,
}
"""The base class of each kind; the first that a class is derived from is its kind."""


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
        return self.listed().summary

    @property
    def description(self) -> str:
        """The class's docstring: what it does, its range, its cost and its parameters."""
        return described(self.cls.__doc__)

    def listed(self) -> Listed:
        """Return the method as it is listed."""
        found = _entry(self.family, self.cls.__name__, self.cls)
        assert found is not None  # instruments are a kind
        return replace(found, distribution=self.distribution)


def entries() -> tuple[Listed, ...]:
    """Return every method that sonde exports, by family, methods to fit first, sorted by name.

    A function is left out if a fitted method has its name, as both do the same.
    """
    found: list[Listed] = []
    for family in FAMILIES:
        room = importlib.import_module(f"sonde.{family}")
        made = [_entry(family, name, getattr(room, name)) for name in room.__all__]
        words = {m.name for m in made if m and m.is_fitted}
        mine = [m for m in made if m and (m.kind != "function" or m.name not in words)]
        order = [*FITTED, *KINDS, "method", "function"]
        found += sorted(mine, key=lambda m: (not m.is_fitted and order.index(m.kind), m.name))
    return tuple(found)


def _entry(family: str, name: str, found: Any) -> Listed | None:
    """Return the entry of an export, or None if it is a base, a result or a part."""
    is_class, is_abstract = inspect.isclass(found), inspect.isabstract(found)
    bases: tuple[Any, ...] = found.__mro__ if is_class else ()
    kind = next((k for k, base in KINDS.items() if base in bases), "method")
    kind = kind if bases else "function"
    paper = getattr(found, "paper", "")
    is_part = is_abstract or Result in bases or not callable(found)
    if is_part or (kind == "method" and not paper):
        return None
    parameters = inspect.signature(found).parameters.values()
    is_fitted = kind in FITTED
    return Listed(
        name=word_of_class(cast("type[Instrument]", found)) if is_fitted else name,
        family=family,
        kind=kind,
        export=name,
        description=described(found.__doc__),
        paper=paper,
        variants=dict(getattr(found, "variants", {})),
        parameters={p.name: "" if p.default is p.empty else repr(p.default) for p in parameters},
        span=cast("type[Instrument]", found).span if is_fitted else "",
    )


def word_of_class(cls: type[Instrument]) -> str:
    """Return the command-line word of a method."""
    return cls.word or snake_case(cls.__name__)


def word_of_name(name: str) -> str:
    """Return the command-line word of the method whose class has this name."""
    return next((m.word for m in methods().values() if m.cls.__name__ == name), snake_case(name))


def distribution_of(cls: type[Instrument]) -> str | None:
    """Return the distribution that announces a method; None if it is sonde or unknown."""
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
    """Return the methods of other distributions; leave out unusable methods with a warning."""
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
    """Return the class of a word; raise with similar words if it is unknown."""
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
