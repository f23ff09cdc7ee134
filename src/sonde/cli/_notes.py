"""Notes about the data, printed once at the end of a command."""

from typing import Any

from sonde.cli.console import note


def say_notes(stream: Any, quiet: bool) -> None:
    """Print how items were read: chunks, skipped items, missing or unknown labels."""
    from sonde.run.reading.notes import notes_of

    for text in () if quiet else notes_of(stream):
        note(f"note: {text}")


def say_left_out(stream: Any, quiet: bool) -> None:
    """Print how many sites were left out by default, and the most frequent reason."""
    from sonde.core.left_out import left_out_text

    if stream.left_out and not quiet:
        note(f"note: left out {left_out_text(stream.left_out)}. --json lists all.")
