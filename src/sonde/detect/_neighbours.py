"""Flags of detectors that look at a number of nearest rows."""

from typing import Final

ASSUMED_CLASSES: Final = 10
"""Classes of rows if their number is not known."""


def neighbour_flags(k: int, n_rows: int, n_classes: int = ASSUMED_CLASSES) -> list[str]:
    """Return the flags of ``k`` neighbours among ``n_rows`` fitted rows.

    Above half of the rows of a class, neighbours of an in-distribution row come from other classes.

    Parameters
    ----------
    k : int
        Neighbours that a score looks at.
    n_rows : int
        Rows in the bank.
    n_classes : int, default=10
        Classes that have rows in the bank.

    Examples
    --------
    >>> neighbour_flags(25, 500), neighbour_flags(26, 500), neighbour_flags(26, 20)
    ([], ['many_neighbours'], ['few_rows'])
    """
    if n_rows < k:
        return ["few_rows"]
    return ["many_neighbours"] if k > 1 and 2 * k * n_classes > n_rows else []
