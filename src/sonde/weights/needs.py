"""Declared inputs of a rewrite: examples, and results of instruments at sites.

A caller passes one mapping by name. Examples may be anything that ``sonde.read`` takes; results may
come from ``sonde.fit``, or be a result, a state or plain rows for each site.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sonde.core.errors import InputError, SondeWarning
from sonde.core.finite import finite_rows
from sonde.core.inputs import Inputs, Model
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.state import State
from sonde.core.wording import plural
from sonde.data import open_inputs
from sonde.data.inputs import ItemInputs
from sonde.tap.hooks.outputs import leaves

MOST_LEFT_OUT = 0.25
"""Largest fraction of examples that may be left out because they are not finite."""


@dataclass(frozen=True)
class Examples:
    """Examples that a rewrite reads. They arrive as ``Inputs`` of the model.

    Parameters
    ----------
    optional : bool, default=False
        Whether they may be missing. They then arrive as None.
    summed : class of a state, optional
        A state that may be passed in place of the examples that it was summed over.
    """

    optional: bool = False
    summed: type[State] | None = None


Need = Instrument | Examples


@runtime_checkable
class Results(Protocol):
    """Results by method and site, as ``sonde.fit`` returns them."""

    def result(self, method: Any, site: str | None = None) -> Any:
        """Return the result of a method at a site."""
        ...


@dataclass(frozen=True)
class AtSites:
    """Results of one instrument, by site.

    Parameters
    ----------
    owner : str
        The rewrite that reads them, for errors.
    instrument : Instrument
        Instrument that is fitted.
    given : Results, Result, State, Tensor, or a mapping of site to any of the last three, or None
        Result of the instrument at each site.
    """

    owner: str
    instrument: Instrument
    given: Any

    def at(self, site: str) -> Any:
        """Return the result at a site.

        Raises
        ------
        InputError
            If nothing was fitted there, or something else was.
        """
        held = self.given
        if isinstance(held, Mapping):
            held = held.get(site, held.get(site.partition(":")[0]))
        elif isinstance(held, Results):
            held = held.result(type(self.instrument), site)
        if isinstance(held, Tensor):
            held = self.instrument.fit(held)
        elif isinstance(held, State) and not isinstance(held, Result):
            (name,) = self.instrument.reads()
            held = self.instrument.result(**{name: held})
        method = type(self.instrument)
        if not isinstance(held, get_type_hints(method.result)["return"]):
            raise InputError(
                f"{self.owner}.plan: expected {method.__name__} fitted at {site}, got "
                f"{type(held).__name__}. Fit it: sonde.fit({method.__name__}(), sonde.read(model, "
                f"data, sites=['{site}'], reducer='tokens'))."
            )
        return held


def bound(owner: str, needs: Mapping[str, Need], model: Model, fitted: Any) -> dict[str, Any]:
    """Return the object that each declared input of a rewrite receives.

    Parameters
    ----------
    owner : str
    needs : mapping of str to Instrument or Examples
    model : Model
    fitted : mapping, Results or None
        By the names of the needs. Where an instrument is the only need, its results themselves.

    Raises
    ------
    InputError
        If examples are missing or empty, or something else was passed in their place.
    """
    examples = {name: need for name, need in needs.items() if isinstance(need, Examples)}
    by_name = isinstance(fitted, Mapping) and bool(examples or needs.keys() & fitted.keys())
    inputs: dict[str, Any] = {}
    for name, need in needs.items():
        if isinstance(need, Examples):
            given = fitted.get(name) if by_name else None
            if given is None and not need.optional:
                raise _missing(owner, examples, name)
            inputs[name] = None if given is None else _opened(owner, name, need, model, given)
        else:
            inputs[name] = AtSites(owner, need, fitted.get(name) if by_name else fitted)
    return inputs


def _missing(owner: str, examples: Mapping[str, Examples], name: str) -> InputError:
    required = _listed(n for n, need in examples.items() if not need.optional)
    return InputError(
        f"{owner}.plan: expected a dict with {required} as fitted, got no {name!r}. Pass examples "
        "under this name: tensors, a loader, or what sonde.data.open_inputs returns."
    )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))


def _opened(owner: str, name: str, need: Examples, model: Model, given: Any) -> Any:
    """Return examples as inputs of the model, or the state that replaces them."""
    if need.summed is not None and isinstance(given, need.summed):
        return given
    if isinstance(given, State):
        expected = "data" if need.summed is None else f"data or {need.summed.__name__}"
        raise InputError(
            f"{owner}.plan: expected {expected} as {name!r}, got {type(given).__name__}."
        )
    opened = given if isinstance(given, Inputs) else open_inputs(model, given)
    if not len(opened):
        raise InputError(f"{owner}.plan: expected examples in {name!r}, got none.")
    return finite_examples(f"{owner}.plan", name, opened)


def finite_examples(owner: str, name: str, inputs: Inputs) -> Inputs:
    """Return the examples whose numbers are all finite; warn of others.

    Raises
    ------
    InputError
        If more than a quarter of them are not finite, or too large to square.
    """
    bad: list[int] = []
    for batch in inputs.batches(0, len(inputs)):
        floats = [
            x
            for x in leaves((batch.args, batch.kwargs)).values()
            if x.is_floating_point() and not x.is_nested and x.shape[:1] == (len(batch),)
        ]
        if not floats:
            return inputs  # token ids: nothing of them can be infinite
        whole = torch.stack([finite_rows(x.reshape(len(batch), -1).cpu()) for x in floats]).all(0)
        bad += batch.order[~whole].tolist()
    if not bad:
        return inputs
    words = (
        f"{owner}: {plural(len(bad), 'example')} of {len(inputs):,} in {name!r} "
        f"{'has' if len(bad) == 1 else 'have'} numbers that are not finite or are too large to "
        f"square, first example {min(bad)}"
    )
    if len(bad) > MOST_LEFT_OUT * len(inputs):
        raise InputError(
            f"{words}. Expected at most {MOST_LEFT_OUT:.0%} of such examples. Clean the examples, "
            "or leave these out."
        )
    if not isinstance(inputs, ItemInputs):
        raise InputError(
            f"{words}. Examples can be left out only of inputs that are read item by item, not of "
            f"{type(inputs).__name__}. Leave these out, or clean them."
        )
    warnings.warn(f"{words}. They are left out.", SondeWarning, stacklevel=5)
    return inputs.at(np.setdiff1d(np.arange(len(inputs)), bad))
