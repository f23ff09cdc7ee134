"""How commands print: results to stdout, everything else to stderr."""

import json
import os
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
"""What was typed after ``sonde``."""


class Failed(Exception):
    """A command that has said why and ends with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def error_line(text: str) -> None:
    """Write one line of error to stderr."""
    sys.stderr.write(f"error: {' '.join(text.split())}\n")


def note_interrupted(directory: Path | None) -> None:
    """Say that the user stopped a command, what is kept, and how to go on."""
    if directory is None:
        error_line("interrupted. Nothing half written is left; run the same command again.")
    else:
        error_line(
            f"interrupted. What is done is kept in {directory}; the same command continues from "
            "there (--resume makes sure of it)."
        )


def say(text: str) -> None:
    """Write text to stdout, with what the terminal cannot show replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    safe = text.encode(encoding, "replace").decode(encoding)
    sys.stdout.write(safe if safe.endswith("\n") else safe + "\n")


def note(text: str) -> None:
    """Write a remark to stderr."""
    sys.stderr.write(text + "\n")


def say_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def use_color(no_color: bool) -> bool:
    """Return whether stdout is a terminal that should be coloured."""
    return not no_color and not os.environ.get("NO_COLOR") and sys.stdout.isatty()


def is_ascii() -> bool:
    """Return whether stdout cannot show more than ASCII."""
    return (sys.stdout.encoding or "ascii").lower().replace("-", "") not in ("utf8", "utf8sig")
