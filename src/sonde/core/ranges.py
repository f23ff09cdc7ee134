"""Ranges of a method's parameters, checked once, when the method is made."""

from collections.abc import Collection
from functools import cache
from math import inf
from typing import Any

from sonde.core.errors import InputError


def check_ranges(method: object, /, **ranges: str | Collection[Any]) -> None:
    """Raise if a parameter of a method is out of range; None is not checked.

    Parameters
    ----------
    method : object
        Its attributes are checked.
    ranges : str or collection
        Of each parameter: ``"> 0"``, ``">= 2"``, ``"(0, 1]"``, or all values that it may have.

    Raises
    ------
    InputError
        With the class, the first parameter outside, its range and its value.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> check_ranges(SimpleNamespace(share=1.5), share="[0, 1)")
    Traceback (most recent call last):
    sonde.core.errors.InputError: SimpleNamespace: expected share in [0, 1), got 1.5.
    """
    for name, wanted in ranges.items():
        value = getattr(method, name)
        if value is None or _holds(value, wanted):
            continue
        got = repr(value) if isinstance(value, str) else value
        raise InputError(f"{type(method).__name__}: expected {name} {_said(wanted)}, got {got}.")


def _holds(value: Any, wanted: str | Collection[Any]) -> bool:
    if not isinstance(wanted, str):
        return value in wanted
    low, with_low, high, with_high = _bounds(wanted)
    try:
        above = low <= value if with_low else low < value
        return bool(above and (value <= high if with_high else value < high))
    except TypeError:  # no number
        return False


@cache
def _bounds(wanted: str) -> tuple[float, bool, float, bool]:
    """Return both bounds of a range, and whether each bound is included."""
    if wanted[0] == ">":
        return float(wanted.lstrip(">= ")), wanted[1] == "=", inf, True
    low, high = wanted[1:-1].split(", ")
    return float(low), wanted[0] == "[", float(high), wanted[-1] == "]"


def _said(wanted: str | Collection[Any]) -> str:
    if isinstance(wanted, str):
        in_words = {"> ": "above ", ">=": "of at least"}
        return in_words[wanted[:2]] + wanted[2:] if wanted[0] == ">" else f"in {wanted}"
    return listed(wanted)


def listed(values: Collection[Any]) -> str:
    """Return values as ``'a', 'b' or 'c'``."""
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last
