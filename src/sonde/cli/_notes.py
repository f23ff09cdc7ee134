"""What a reader must know of the data that were read, said once at the end of a command."""

from typing import Any

from sonde.cli.console import note


def say_notes(stream: Any, quiet: bool) -> None:
    """Say how items were read: chunks, skipped ones, labels that are not the model's own."""
    from sonde.data import ItemInputs
    from sonde.tap import LiveStream

    if quiet or not (isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs)):
        return
    for text in stream.inputs.notes:
        note(f"note: {text}")
