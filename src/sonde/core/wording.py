"""Counts, sizes and numbers as text."""

import math
from typing import Final

SHORT_NAME: Final = 24

DISTRIBUTION = "sonde-torch"
"""What pip calls this package: an index has another project under the name sonde."""


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "row"), plural(1797, "row"), plural(2, "class", "classes")
    ('1 row', '1,797 rows', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def gib(n_bytes: int) -> str:
    """Return a number of bytes as KiB, MiB or GiB.

    Examples
    --------
    >>> gib(3 * 2**29), gib(3 * 2**12)
    ('1.5 GiB', '12 KiB')
    """
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:.0f} KiB"
    return f"{n_bytes / 2**20:.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.1f} GiB"


def significant(value: float, digits: int) -> str:
    """Return a finite number with ``digits`` significant digits; integers keep all digits.

    Examples
    --------
    >>> [significant(x, 3) for x in (0, 0.00861, 41.23, 1797, 6.2e6, 2e-7)]
    ['0', '0.00861', '41.2', '1,797', '6.2e6', '2e-7']
    """
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value):,}"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_without_zeros(mantissa)}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _without_zeros(f"{value:,.{places}f}")


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def is_content_hash(key: str) -> bool:
    """Return whether the id of a row is a hash of its content: the id of rows without ids.

    Examples
    --------
    >>> is_content_hash("3e7b04e4e9b5ac13d5fdb845369367a3"), is_content_hash("person 7")
    (True, False)
    """
    return len(key) == 32 and not set(key) - set("0123456789abcdef")


def told_apart_names(mine: str, theirs: str) -> tuple[str, str]:
    """Return short, distinct names for two data sets: whole paths, or their last parts.

    The names are ``DATA`` and ``OTHER`` if neither form tells the data sets apart.

    Examples
    --------
    >>> told_apart_names("photos of last summer/old.csv", "sonde:digits/test")
    ('old.csv', 'test')
    >>> told_apart_names("sonde:digits/test", "new.csv"), told_apart_names("list of items", "")
    (('sonde:digits/test', 'new.csv'), ('DATA', 'OTHER'))
    """
    whole = mine, theirs
    short = mine.rstrip("/").rpartition("/")[2], theirs.rstrip("/").rpartition("/")[2]
    for pair in (whole, short) if max(map(len, whole)) <= SHORT_NAME else (short, whole):
        if pair[0] != pair[1] and all(pair):
            return pair
    return "DATA", "OTHER"


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of sonde's distribution.

    Examples
    --------
    >>> install_extra("serve")
    "pip install 'sonde-torch[serve]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"
