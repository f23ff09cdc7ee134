"""The places of the examples that the rows of a table name."""

from typing import Any

from sonde.findings._shared import EXAMPLES
from sonde.run.reading.row_places import Place


def name_places(rows: list[dict[str, Any]], place: Place) -> None:
    """Add ``places`` to rows that say their ``examples``, which are taken off.

    Parameters
    ----------
    rows : list of dict
        Changed in place.
    place : callable
        As ``places_of`` returns it.
    """
    for row in rows:
        found = [place(example) for example in row.pop(EXAMPLES)]
        row["places"] = [name for name in found if name is not None]
