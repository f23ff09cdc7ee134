"""Rows of data unchanged, for questions about columns that no model reads."""

from itertools import islice
from typing import Any

from sonde.data.opening import open_source


def rows_of(data: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the items of data unchanged, before any model reads them.

    Parameters
    ----------
    data : str, path or re-iterable
        What ``open_inputs`` takes.
    limit : int, optional
        Return only the first items.

    Examples
    --------
    >>> rows_of([{"text": "a", "author": "b"}])
    [{'text': 'a', 'author': 'b'}]
    """
    source, _ = open_source(data)
    return [dict(row) for row in islice(source.rows(), limit)]
