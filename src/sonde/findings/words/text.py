"""Formats of numbers, fractions, lists and positions in sentences."""

import math
from collections.abc import Sequence

from sonde.core.wording import plural as plural
from sonde.core.wording import significant

LONGEST = 240


def number(value: float, digits: int = 2) -> str:
    """Format a number with ``digits`` significant digits; whole numbers keep all digits.

    Examples
    --------
    >>> [number(x) for x in (0, 0.00861, 41.23, 1797, 6.2e6, 2e-7)]
    ['0', '0.0086', '41', '1,797', '6.2e6', '2e-7']
    """
    return significant(value, digits) if math.isfinite(value) else "not finite"


def about(value: float) -> str:
    """Format an estimate with two digits, such as the median of a histogram.

    Examples
    --------
    >>> [about(x) for x in (0.00861, 41.23, 1797, float("inf"))]
    ['0.0086', '41', '1,800', 'not finite']
    """
    return number(float(f"{value:.2g}"))


def percent(share: float, digits: int = 2) -> str:
    """Format a fraction between 0 and 1 in per cent.

    Examples
    --------
    >>> percent(0.0092), percent(0.987), percent(0.9994, 3), percent(1.0)
    ('0.92 %', '99 %', '99.9 %', '100 %')
    """
    return f"{number(100 * share, digits)} %"


def listed(names: Sequence[str], at_most: int = 3) -> str:
    """Join names into a list that ends in "and", cut after ``at_most``.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b", "c", "d", "e"])
    ('a', 'a, b and c', 'a, b, c and 2 more')
    """
    names = list(names)
    if len(names) > at_most:
        return f"{', '.join(names[:at_most])} and {len(names) - at_most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(text: str, at_most: int = 40) -> str:
    """Shorten an untrusted name to one line, cut in the middle.

    Examples
    --------
    >>> shortened("a" * 50, 11)
    'aaaaa…aaaaa'
    """
    text = " ".join(text.split())
    half = (at_most - 1) // 2
    return text if len(text) <= at_most else f"{text[:half]}…{text[-half:]}"
