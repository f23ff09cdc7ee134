"""What a state that was measured on a model keeps about it, and how another model differs.

For states outside of ``sonde.fit``: its files hold the same facts in their header.
"""

import json
from typing import Any

from torch import nn

from sonde.core.errors import StateError
from sonde.core.state import canonical_json
from sonde.files.identity import PARTS, describe_difference
from sonde.tap.model.fingerprint import config_hash, fingerprint
from sonde.tap.model.parts import parts
from sonde.tap.model.structure import structure

FACTS = (PARTS, "structure", "config", "model")


def model_record(module: nn.Module) -> str:
    """Return the hashes of a model and the facts about its parts as one text.

    Parameters
    ----------
    module : nn.Module
        Model to describe.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> known = model_record(net)
    >>> net[1].eps = 0.1
    >>> "eps=0.1" in difference_of_models(model_record(net), known)
    True
    """
    return canonical_json(
        {
            "model": fingerprint(module),
            "config": config_hash(getattr(module, "config", None), module),
            "structure": structure(module),
            PARTS: parts(module),
        }
    )


def difference_of_models(here: str, known: str) -> str | None:
    """Return the first difference of two records in words; None if they are of the same model.

    A record of an earlier version is the hash of the weights alone: nothing else is compared.

    Parameters
    ----------
    here : str
        Record of the model at hand.
    known : str
        Record that a state holds.
    """
    own, its = _facts(here), _facts(known)
    both = [name for name in FACTS if name in own and name in its]
    return describe_difference(own, its, both)


def require_measured_on(module: nn.Module, known: str, what: str, again: str) -> None:
    """Raise if a state was measured on another model.

    Parameters
    ----------
    module : nn.Module
        Model at hand.
    known : str
        Record of a model that the state holds.
    what : str
        Beginning of the message: the caller and the state.
    again : str
        Function that measures the state.

    Raises
    ------
    StateError
        Naming the first difference.
    """
    apart = difference_of_models(model_record(module), known)
    if apart is not None:
        raise StateError(
            f"{what} were measured on another model: {apart}. Measure them again with {again}."
        )


def _facts(record: str) -> dict[str, Any]:
    return json.loads(record) if record.startswith("{") else {"model": record}
