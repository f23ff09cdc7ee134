"""Format numbers, fractions, sizes and untrusted names as text."""

import math
import re
import unicodedata
from typing import Any

from sonde.core.wording import plural as plural
from sonde.core.wording import significant

# Figures come from JSON, where 1 and 1.0 are one number.
Real = float | int

MOST_WHOLE = 1e9
LEVELS = ("error", "warning", "note")
STATES = ("raised", "clear", "withheld", "not_applicable", "failed")

_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
# Signs that turn the direction of text around, and those that no XML may hold.
_HIDDEN = set(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ufffe\uffff"
)


def number(value: Real | None, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits; a dash for None.

    Examples
    --------
    >>> [number(x) for x in (0, 0.00861, 41.23, 1797, 6.2e6, 2e-7, None)]
    ['0', '0.00861', '41.2', '1,797', '6.2e6', '2e-7', '–']
    """
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) and abs(value) < MOST_WHOLE:
        return f"{value:,}"
    return significant(value, digits)


def score_words(score: Real) -> str:
    """Format a score as a number, or as "infinite" (the score of a non-finite row)."""
    return "infinite" if score == math.inf else number(score)


def share(value: Real | None, digits: int = 3) -> str:
    """Format a fraction in per cent.

    Examples
    --------
    >>> share(0.0092), share(None)
    ('0.92 %', '–')
    """
    return "–" if value is None else f"{number(100 * value, digits)} %"


def quantity(value: Real | None, unit: str = "", digits: int = 3) -> str:
    """Format a value with its unit; fractions are printed in per cent.

    Examples
    --------
    >>> quantity(0.63, "share"), quantity(1.771, "nats"), quantity(87, "count")
    ('63 %', '1.77 nats', '87')
    """
    if unit == "share":
        return share(value, digits)
    suffix = "" if unit in {"", "ratio", "count"} or value is None else f" {unit}"
    return number(value, digits) + suffix


def p_text(p: Real, digits: int = 1) -> str:
    """Format a p-value to follow the letter p; a value that underflows is not zero.

    Examples
    --------
    >>> p_text(0.0123), p_text(0.0)
    ('= 0.01', '< 1e-300')
    """
    return f"= {p_value(p, digits)}" if p > 0 else p_value(p)


def p_value(p: Real | None, digits: int = 2) -> str:
    """Format a p-value; a value that underflows is not printed as zero.

    Examples
    --------
    >>> p_value(0.0123), p_value(0.0), p_value(None)
    ('0.012', '< 1e-300', '–')
    """
    return "< 1e-300" if p == 0 else number(p, digits)


def interval(figure: dict[str, Any]) -> str:
    """Format a value as ``value (low to high)``."""
    text = quantity(figure["value"], figure["unit"])
    if figure["low"] is None or figure["high"] is None:
        return text
    low, high = (quantity(figure[end], figure["unit"]) for end in ("low", "high"))
    return f"{text} ({low} to {high})"


def seconds(value: Real | None) -> str:
    """Format a duration.

    Examples
    --------
    >>> seconds(2.14), seconds(754)
    ('2.1 s', '12 min 34 s')
    """
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60} s"


def shown(text: object, limit: int = 200) -> str:
    r"""Return an untrusted name on one line, without control or direction characters.

    Examples
    --------
    >>> shown("a\x1b[2Jb\nc")
    'a�[2Jb�c'
    """
    clean = str(text)
    if not clean.isprintable():
        clean = "".join("�" if _is_unsafe(letter) else letter for letter in clean)
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def tied(text: str) -> str:
    """Return a sentence with no line break between a number and its per cent sign."""
    return text.replace(" %", "\u00a0%")


def words(name: str) -> str:
    """Return the words of a snake_case name."""
    return re.sub(r"_+", " ", name)


def _is_unsafe(letter: str) -> bool:
    return letter in _HIDDEN or unicodedata.category(letter) in _UNSAFE


def rows_read(data: dict[str, Any]) -> str:
    """Return the number of rows read, the size of the data, and the number truncated.

    Examples
    --------
    >>> rows_read({"n_rows": 200, "sample_of": 1908, "n_truncated": 48})
    '200 of 1,908 rows (a sample), 48 cut short'
    >>> rows_read({"n_rows": 512, "n_texts": 64})
    '512 pieces of 64 texts'
    """
    n, whole, cut = data["n_rows"], data.get("sample_of"), data.get("n_truncated")
    if data.get("n_texts") is not None:
        return f"{plural(n, 'piece')} of {plural(data['n_texts'], 'text')}"
    text = plural(n, "row") if whole is None else f"{n:,} of {plural(whole, 'row')} (a sample)"
    return text + (f", {cut:,} cut short" if cut else "")
