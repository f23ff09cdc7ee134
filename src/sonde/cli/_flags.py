"""Flags of fitted results: each flag once, with its meaning and its sites."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import SondeError
from sonde.core.result import FLAGS, Result
from sonde.core.wording import plural
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key, place_of

MOST_PLACES = 3


def flag_entries(results: Mapping[Key, Result]) -> list[dict[str, Any]]:
    """Return the flags of results as JSON values, with their meaning, methods and sites."""
    return [
        {
            "flag": flag,
            "meaning": meaning,
            "at": [
                {"method": method, "site": site}
                for (method, site), result in results.items()
                if flag in result.flags
            ],
        }
        for flag, meaning in FLAGS.items()
        if any(flag in result.flags for result in results.values())
    ]


def flags_in(path: Path) -> list[dict[str, Any]] | None:
    """Return the flags of the results in a file, or None if the file cannot be loaded here."""
    try:
        return flag_entries(dict(Fitted.load(path)))
    except SondeError:
        return None


def flag_texts(flags: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each flag.

    Examples
    --------
    >>> flag_texts([{"flag": "dead", "meaning": "nothing varies", "at": [
    ...     {"method": "knn", "site": "0:out"}]}])
    ['dead: nothing varies (knn at 0:out)']
    """
    return [f"{flag['flag']}: {flag['meaning']} ({_places(flag['at'])})" for flag in flags]


def _places(at: Sequence[Mapping[str, str]]) -> str:
    places = [f"{p['method']} at {place_of(p['method'], p['site'])}" for p in at[:MOST_PLACES]]
    more = len(at) - len(places)
    return ", ".join(places) + (f", and {plural(more, 'other result')}" if more else "")
