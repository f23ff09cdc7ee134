"""What a reader must know of the data that were read, said once at the end of a command."""

from typing import Any

from sonde.cli.console import note


def say_notes(stream: Any, quiet: bool) -> None:
    """Say how items were read: chunks, skipped ones, labels that are missing or not the model's."""
    from sonde.core.array_stream import ArrayStream
    from sonde.data import ItemInputs
    from sonde.tap import LiveStream

    if quiet:
        return
    if isinstance(stream, ArrayStream):
        _say_unlabelled(stream.label)
    elif isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs):
        for text in stream.inputs.notes:
            note(f"note: {text}")
        _say_unlabelled(stream.inputs.listing.label)


def _say_unlabelled(label: Any) -> None:
    """Say how many examples have no label, where others have one."""
    n, missing = len(label), int((label < 0).sum())
    if 0 < missing < n:
        note(
            f"note: {missing:,} of {n:,} examples have no label (-1 or empty); methods that use "
            "labels leave them out. If -1 is a class, number the classes from 0."
        )
