"""Whether a live model, or another file's model, computes what a fitted file's model computed.

Facts about its parts that may change without changing the result (hooks, containers, the code of
a forward) are settled by the states of drawn inputs.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from sonde.core.errors import SondeWarning, StateError
from sonde.files.identity import CODE, PARTS, same_code
from sonde.files.part_facts import describe_part, difference_of_parts
from sonde.tap import distances_of, dtype_of, is_watched, states_of, tolerance

BEHAVIOUR = "behaviour"


def require_same_behaviour(
    header: Mapping[str, Any], module: nn.Module, here: Mapping[str, Any], who: str
) -> None:
    """Raise if a model's states of a file's drawn inputs are not those of the fit.

    Parameters
    ----------
    header : mapping
        Of the fitted file.
    module : nn.Module
    here : mapping
        Identity of the model: its code and its parts.
    who : str
        For messages.

    Raises
    ------
    StateError
        Naming the parts that may be the cause.
    """
    behaviour = header.get(BEHAVIOUR)
    if behaviour is not None and is_watched(module):
        return  # an edit that is open belongs to the user, and counts no part of the model
    if behaviour is None:
        warn_of_parts(header["model"], here, who)
        return
    try:
        states = states_of(module, behaviour)
    except Exception as error:
        raise StateError(
            f"{who}: the model raises {type(error).__name__} on inputs on which the model of the "
            f"fit ran: {error} Fit again."
        ) from error
    own = {**behaviour, "states": states, "dtype": dtype_of(module)}
    require_alike(behaviour, own, header["model"], here, who)


def require_alike(
    known: Mapping[str, Any],
    mine: Mapping[str, Any],
    fitted: Mapping[str, Any],
    here: Mapping[str, Any],
    who: str,
) -> None:
    """Raise if two behaviours of equal inputs differ by more than rounding."""
    limit = tolerance(known, mine)
    far = distances_of(mine["states"], known["states"])
    site = max(far, key=lambda name: far[name], default=None)
    if site is None or far[site] <= limit:
        return
    causes = _uncertain(fitted, here)
    raise StateError(
        f"{who}: the model no longer computes what it computed in the fit: its states of the same "
        f"{len(known['states'][site])} drawn inputs differ by {far[site]:.1%} at {site} (up to "
        f"{limit:.1%} is rounding). {causes or 'None of its parts that can be compared differs.'} "
        "Restore the model of the fit, or fit again."
    )


def warn_unknown(fitted: Mapping[str, Any], here: Mapping[str, Any], who: str) -> None:
    """Warn if a file of an earlier version lacks facts about the parts of its model."""
    if here.get("structure") is not None and fitted.get("structure") is None:
        warnings.warn(
            f"{who}: the state was written by an earlier version, which recorded only the "
            "weights and the configuration of its model, so the classes and settings of the "
            "modules cannot be compared. Fit again to record them.",
            SondeWarning,
            stacklevel=3,
        )
    elif here.get(PARTS) is not None and fitted.get(PARTS) is None:
        warnings.warn(
            f"{who}: the state was written by an earlier version, which did not record active "
            "adapters, private attributes, hooks and packed weights, so they cannot be compared. "
            "Fit again to record them.",
            SondeWarning,
            stacklevel=3,
        )


def same_inputs(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two behaviours are of the same drawn inputs."""
    return all(a[name] == b[name] for name in ("inputs", "types", "dtype"))


def warn_of_parts(fitted: Mapping[str, Any], here: Mapping[str, Any], who: str) -> None:
    """Warn of parts that differ and may change the result, where no states can be compared."""
    causes = _uncertain(fitted, here)
    if causes:
        warnings.warn(
            f"{who}: {causes} The states of the same inputs are not known on both sides, so it "
            "cannot be checked whether the model still computes the same result. Fit again, unless "
            "it does.",
            SondeWarning,
            stacklevel=4,
        )


def _uncertain(fitted: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return sentences about the parts that differ and may be the cause; empty if none do."""
    own, its = here.get(PARTS), fitted.get(PARTS)
    if own is None or its is None:
        return ""
    differences = [describe_part(name, own, its) for name in difference_of_parts(own, its)]
    if not same_code(fitted.get(CODE), here.get(CODE)):
        differences.append(
            "the code of a forward method, or of a function that it calls, has changed"
        )
    more = f", and {len(differences) - 3} further parts differ" if len(differences) > 3 else ""
    return f"{'; '.join(differences[:3])}{more}." if differences else ""
