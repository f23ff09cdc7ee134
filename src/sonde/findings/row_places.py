"""Where the rows that a report names stand in the user's own files."""

from collections.abc import Callable
from typing import Any

from sonde.core.stream import Stream
from sonde.data import ItemInputs
from sonde.findings._shared import EXAMPLES
from sonde.tap import LiveStream
from sonde.tap.replay import ReplayInputs

Place = Callable[[int], str | None]


def places_of(stream: Stream | None, hashed: bool) -> Place:
    """Return what names the place of an example: its file, line or row; None where it is unknown.

    Parameters
    ----------
    stream : Stream or None
    hashed : bool
        Whether names of files are kept out: rows are numbered then, as in tables of scores.
    """
    inputs = stream.inputs if isinstance(stream, LiveStream) else None
    inputs = inputs.prompts if isinstance(inputs, ReplayInputs) else inputs
    if isinstance(inputs, ItemInputs) and not hashed:
        return inputs.place
    numbers = None if stream is None else stream.source_rows
    return lambda example: None if numbers is None else f"row {numbers[example]}"


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
