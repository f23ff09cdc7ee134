"""Access labels of what was fitted: who may use a state that has seen labelled rows."""

from collections.abc import Mapping
from typing import Any

from sonde.core.errors import StateError
from sonde.core.stream import Stream

LABELS = "labels"


def joined_labels(*headers: Mapping[str, Any]) -> list[str]:
    """Return the labels of a state of the rows of several: all of theirs."""
    return sorted({label for header in headers for label in header.get(LABELS, ())})


def require_cleared(header: Mapping[str, Any], stream: Stream) -> None:
    """Refuse a reader who lacks a label that a state was fitted on.

    Raises
    ------
    StateError
        With the labels; a stream other than ``Cleared`` is cleared for none.
    """
    lacking = sorted({*header.get(LABELS, ())} - {*stream.clearance})
    if lacking:
        raise StateError(
            f"score: the state has seen rows with the labels {', '.join(lacking)}, for which this "
            "reader is not cleared. Score sonde.store.Cleared(store, column, clearance), or pass "
            "fitted.declassified(...) with these labels."
        )
