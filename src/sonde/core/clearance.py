"""Access labels of fitted states: a reader needs every label of the rows behind a state."""

from collections.abc import Mapping
from typing import Any

from sonde.core.errors import StateError
from sonde.core.stream import Stream

LABELS = "labels"


def joined_labels(*headers: Mapping[str, Any]) -> list[str]:
    """Return the union of the access labels of several states."""
    return sorted({label for header in headers for label in header.get(LABELS, ())})


def require_cleared(header: Mapping[str, Any], stream: Stream) -> None:
    """Raise if a reader lacks an access label of the rows that a state was fitted on.

    Raises
    ------
    StateError
        Names the missing labels. A stream other than ``Cleared`` is cleared for no label.
    """
    lacking = sorted({*header.get(LABELS, ())} - {*stream.clearance})
    if lacking:
        raise StateError(
            f"score: the state was fitted on rows with the labels {', '.join(lacking)}, for "
            "which this reader has no clearance. Score sonde.store.Cleared(store, column, "
            "clearance), or pass fitted.declassified(...) with these labels."
        )
