"""Locations of a report's rows in the user's own files."""

from collections.abc import Callable

from sonde.core.stream import Stream
from sonde.run.reading.notes import items_of

Place = Callable[[int], str | None]


def places_of(stream: Stream | None, hashed: bool) -> Place:
    """Return a function from an example to its file, line or row, or None if that is unknown.

    Parameters
    ----------
    stream : Stream or None
    hashed : bool
        Whether to leave out names of files. Rows are then numbered, as in tables of scores.
    """
    inputs = items_of(stream)
    if inputs is not None and not hashed:
        return inputs.place
    numbers = None if stream is None else stream.source_rows
    return lambda example: None if numbers is None else f"row {numbers[example]}"


def places_of_rows(stream: Stream, hashed: bool) -> Place:
    """Return a function from a row's number in tables of scores to its location in the data."""
    inputs = items_of(stream)
    if inputs is not None and not hashed:
        return inputs.source.place
    return lambda row: f"row {row}"
