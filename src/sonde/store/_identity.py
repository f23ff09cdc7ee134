"""Identities of stores with fewer sites, with more sites, or with further data."""

from collections.abc import Sequence
from typing import Any

from sonde.files.identity import MODEL_FACTS, agree, describe_difference

PARALLEL = ("sites", "reducers", "keys")
DATA = "data"


def only_sites(identity: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the identity of a stream that reads only these kinds of rows."""
    if "arrays" in identity:
        arrays = identity["arrays"]
        return {**identity, "arrays": {k: arrays[k] for k in keys if k in arrays}}
    if "keys" not in identity:
        return identity
    index = [identity["keys"].index(key) for key in keys]
    return identity | {n: [identity[n][i] for i in index] for n in PARALLEL if n in identity}


def only_arrays(identity: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return an identity of arrays, restricted to the arrays of another identity."""
    both = "arrays" in identity and "arrays" in other
    return only_sites(identity, list(other["arrays"])) if both else identity


def joined_identity(identities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the identity of a stream that joins the sites of several streams of equal data."""
    first, *others = identities
    joined = dict(first)
    for other in others:
        if "arrays" in joined:
            joined["arrays"] = joined["arrays"] | other["arrays"]
        else:
            joined |= {n: [*joined[n], *other[n]] for n in PARALLEL}
    return joined


def without_sites(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity that do not depend on the sites."""
    return {k: v for k, v in identity.items() if k not in (*PARALLEL, "arrays")}


def without_data(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity that do not depend on the data."""
    return {k: v for k, v in identity.items() if k not in (DATA, "arrays", "columns")}


def appended(identities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the identity of several data sets that are read one after another."""
    if len(identities) == 1:
        return identities[0]
    parts = [data_of(identity) for identity in identities]
    return without_data(identities[0]) | {DATA: {"appended": parts}}


def data_of(identity: dict[str, Any]) -> Any:
    """Return the part of an identity that describes the data."""
    return identity.get(DATA, {name: identity.get(name) for name in ("arrays", "columns")})


def number_columns(identity: dict[str, Any]) -> list[str] | None:
    """Return the numeric columns of the input vectors, in order; None for other data."""
    held = data_of(identity)
    parts = held.get("appended") if isinstance(held, dict) else None
    if parts is not None:
        return number_columns({DATA: parts[0]})
    encoding = held.get("encoding") if isinstance(held, dict) else None
    if isinstance(encoding, dict) and encoding.get("kind") == "numbers":
        return encoding["inputs"]
    return None


def is_of_arrays(identity: dict[str, Any]) -> bool:
    """Return whether every row is its own example, identified by arrays and columns."""
    held = data_of(identity)
    parts = held.get("appended") if isinstance(held, dict) else None
    if parts is not None:
        return all(is_of_arrays({DATA: part}) for part in parts)
    return isinstance(held, dict) and held.get("arrays") is not None


def names_rows(identity: dict[str, Any]) -> bool:
    """Return whether an identity determines its rows, for any choice of sites."""
    return "arrays" not in identity or not {"ids", "keys"}.isdisjoint(identity["columns"])


def describe_other_model(here: dict[str, Any], stored: dict[str, Any]) -> str | None:
    """Return how a model differs from a store's, in words; None if it is the same model."""
    apart = describe_difference(here, stored, MODEL_FACTS)
    return (
        None
        if apart is None
        else apart.replace("the fit", "the store").replace("fitted)", "stored)")
    )


def first_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Return the first entry in which two identities differ, or None."""
    return _first_name([n for n in {*a, *b} if a.get(n) != b.get(n)])


def contradiction(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Return the first entry in which two identities differ, among entries known to both."""
    return _first_name([n for n in {*a, *b} if not agree(n, a.get(n), b.get(n))])


def _first_name(names: list[str]) -> str | None:
    name_first = min(names, key=lambda name: (name in PARALLEL, name), default=None)
    return "sites" if name_first in PARALLEL else name_first
