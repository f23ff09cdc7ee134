"""Entry of every exported method in the list of ``sonde methods``, built from its class."""

import importlib
import inspect
from dataclasses import replace
from typing import Any, cast

from torch import nn

from sonde.core.cache_packing import CachePacking
from sonde.core.cache_rule import CacheRule
from sonde.core.codec import Codec
from sonde.core.edit import Edit
from sonde.core.explainer import Explainer, Judge
from sonde.core.instrument import Detector, Instrument
from sonde.core.result import Result
from sonde.core.shift import Shift
from sonde.core.token_rule import TokenRule
from sonde.run.instruments.catalogue import Method, word_of_class
from sonde.run.instruments.families import FAMILIES, FITTED, Listed, described
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


def entry_of_method(method: Method) -> Listed:
    """Return the entry of an instrument, also of an instrument from another distribution."""
    entry = _entry(method.family, method.cls.__name__, method.cls)
    assert entry is not None  # instruments are a kind
    return replace(entry, distribution=method.distribution)


def entries() -> tuple[Listed, ...]:
    """Return every method that sonde exports, by family, methods to fit first, sorted by name.

    A function is left out if a fitted method has its name, as both do the same.
    """
    listed: list[Listed] = []
    for family in FAMILIES:
        room = importlib.import_module(f"sonde.{family}")
        exported = [_entry(family, name, getattr(room, name)) for name in room.__all__]
        words = {m.name for m in exported if m and m.is_fitted}
        shown = [m for m in exported if m and (m.kind != "function" or m.name not in words)]
        order = [*FITTED, *KINDS, "method", "function"]
        listed += sorted(shown, key=lambda m: (not m.is_fitted and order.index(m.kind), m.name))
    return tuple(listed)


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
