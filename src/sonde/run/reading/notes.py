"""What a reader must know of the data that were read, to be said once at the end of a run."""

from typing import Any

from sonde.core.array_stream import ArrayStream
from sonde.core.stream import Stream
from sonde.data import ItemInputs
from sonde.tap import LiveStream


def notes_of(stream: Stream) -> list[str]:
    """Return a sentence for chunks, skipped items, and labels that are missing or not the model's.

    Items that a source had to skip are known once they were read.
    """
    if isinstance(stream, ArrayStream):
        return _unlabelled(stream.label)
    if isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs):
        return [*stream.inputs.notes, *_unlabelled(stream.inputs.listing.label)]
    return []


def _unlabelled(label: Any) -> list[str]:
    """Say how many examples have no label, where others have one."""
    n, missing = len(label), int((label < 0).sum())
    if not 0 < missing < n:
        return []
    return [
        f"{missing:,} of {n:,} examples have no label (-1 or empty); methods that use labels leave "
        "them out. If -1 is a class, number the classes from 0."
    ]
