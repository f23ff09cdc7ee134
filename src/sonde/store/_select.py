"""Find the kinds of rows that a user names: by a path, a suffix of a path, or a pattern."""

import fnmatch
import re
from collections.abc import Sequence

from sonde.core.batch import SiteSchema
from sonde.core.errors import SiteError, near

SHOWN = 6
_OF_A_MODEL = re.compile(r"^(blocks|logits|(.*\.)?-\d+(\..*)?)$")
_WILD = frozenset("*?[")


def matching_keys(pattern: str, schema: Sequence[SiteSchema], store: str) -> set[str]:
    """Return the kinds of rows that a pattern names; whole names go before suffixes.

    Raises
    ------
    SiteError
        If it names no site of the store, or is a suffix of several without a wildcard.
    """
    path = pattern.partition("|")[0]
    found = [s for s in schema if _names(pattern, path, s)]
    if not found:
        found = [s for s in schema if _names(pattern, f"*.{path}", s)]
        sites = dict.fromkeys(str(s.site) for s in found)
        if len(sites) > 1 and _WILD.isdisjoint(path):
            raise SiteError(
                f"Store.select: {pattern!r} names {len(sites)} sites of {store}: {_shown(sites)}. "
                "Write more of the path."
            )
    if not found:
        raise SiteError(_unknown(pattern, schema, store))
    return {s.key for s in found}


def _names(pattern: str, path: str, schema: SiteSchema) -> bool:
    if pattern in ("auto", schema.key):
        return True
    reducer = pattern.partition("|")[2]
    if reducer and str(schema.reducer) != reducer:
        return False
    site = str(schema.site)
    forms = {site, site.removesuffix(":out"), schema.key.partition("|")[0]}
    return any(fnmatch.fnmatchcase(form, path) for form in forms)


def _unknown(pattern: str, schema: Sequence[SiteSchema], store: str) -> str:
    keys = [s.key for s in schema]
    advice = near(pattern, keys)
    if _OF_A_MODEL.match(pattern.partition("|")[0].partition(":")[0]):
        advice = " A store does not know the model's modules: write the number or the name of one."
    return f"Store.select: {store} has no site {pattern!r}.{advice} It has {_shown(keys)}."


def _shown(names: Sequence[str] | dict[str, None]) -> str:
    return ", ".join([*names][:SHOWN]) + (" and more" if len(names) > SHOWN else "")
