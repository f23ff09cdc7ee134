"""What a reader must know of the data that were read, said once at the end of a command."""

from typing import Any

from sonde.cli.console import note


def say_notes(stream: Any, quiet: bool) -> None:
    """Say how items were read: chunks, skipped ones, labels that are missing or not the model's."""
    from sonde.run.reading.notes import notes_of

    for text in () if quiet else notes_of(stream):
        note(f"note: {text}")
