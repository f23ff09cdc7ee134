"""Compare, between two bundles, the fractions of broken states and of missing input values.

Every other comparison leaves such rows out, so that only their fraction can say that they moved.
"""

from typing import Any, Final

from scipy.stats import fisher_exact

from sonde.core.shift import Comparison
from sonde.run.fitting.fitted import Fitted

BROKEN: Final = "nonfinite"
MISSING: Final = "missing"
Count = tuple[int, int]
"""Rows of a kind, and all rows."""


def chance_of_counts(first: Count, second: Count) -> float:
    """Return the p-value of Fisher's exact test on two fractions.

    Examples
    --------
    >>> round(chance_of_counts((0, 10), (5, 10)), 4)
    0.0325
    """
    result: Any = fisher_exact([[k, n - k] for k, n in (first, second)])
    return float(result.pvalue)


def broken_rows(first: Fitted, second: Fitted, key: str) -> Comparison | None:
    """Return how the fraction of rows with NaN, infinite or huge values changed at a site.

    None if neither side has such a row, or counted its rows.
    """
    counts = [_broken(bundle, key) for bundle in (first, second)]
    if None in counts or not any(count[0] for count in counts if count):
        return None
    (a, n), (b, m) = (count for count in counts if count)
    units = [_independent(bundle, rows) for bundle, rows in ((first, n), (second, m))]
    return _compared(
        (a, n), (b, m), (units[0], units[1]), "rows with NaN, infinity or huge numbers"
    )


def missing_values(first: Fitted, second: Fitted) -> dict[str, Comparison]:
    """Return, by column of the input, how the fraction of missing values changed.

    Columns that are complete on both sides are left out.
    """
    one, other = (bundle.header["data"].get("missing") for bundle in (first, second))
    if not one or not other:
        return {}
    n, m = int(one["rows"]), int(other["rows"])
    comparisons: dict[str, Comparison] = {}
    for name in dict.fromkeys((*one["columns"], *other["columns"])):
        counts = (one["columns"].get(name, 0), n), (other["columns"].get(name, 0), m)
        if counts[0][0] or counts[1][0]:
            comparisons[name] = _compared(*counts, (n, m), "rows without a value")
    return comparisons


def _broken(bundle: Fitted, key: str) -> Count | None:
    counters = bundle.header["counters"]
    n = counters.get(f"rows|{key}", 0)
    return (int(counters.get(f"nonfinite|{key}", 0)), int(n)) if n else None


def _independent(bundle: Fitted, n_rows: int) -> int:
    """Return the number of independent rows of a side: its groups, else its examples."""
    data = bundle.header["data"]
    return min(n_rows, int(data["n_groups"] if data.get("grouped") else data["n_examples"]))


def _compared(first: Count, second: Count, units: tuple[int, int], what: str) -> Comparison:
    shares = first[0] / first[1], second[0] / second[1]
    a, b = (round(share * n) for share, n in zip(shares, units, strict=True))
    return Comparison(
        value=shares[1] - shares[0],
        null=0.0,
        n=first[1] + second[1],
        range=(-1.0, 1.0),
        conventions={
            "value": f"fraction of {what}, second side minus first side",
            "p": "Fisher's exact test of both fractions of independent rows",
        },
        p=chance_of_counts((a, units[0]), (b, units[1])),
        statistic=shares[1],
        sides=units,
    )
