"""Output of a command's result: a page if requested, then text or JSON."""

from pathlib import Path
from typing import Any

from sonde.cli._table import terminal_width, text_width
from sonde.cli.console import further_pages, note, say, say_json
from sonde.cli.options import Printing
from sonde.core.errors import InputError

PAGES = (".html", ".htm", ".json")
PIPE_TABLE = 1000


def check_page(page: Path | None, *inputs: object, flag: str = "-o") -> None:
    """Raise if the page cannot be written, before anything runs.

    Parameters
    ----------
    page : Path or None
    *inputs
        Files that are read: the page must not replace them.
    flag : str, default="-o"
        Where the name was typed.

    Raises
    ------
    InputError
        If the name has another ending than a page, or is an input.
    StoreError
        If nothing can be written there.
    """
    from sonde.store.outputs import check_file

    if page is None:
        return
    for each in pages_of(page):
        if each.suffix.lower() not in PAGES:
            raise InputError(f"{flag}: expected a name that ends in .html or .json, got {each}.")
        check_file(each, *map(str, inputs))


def pages_of(page: Path) -> tuple[Path, ...]:
    """Return the first output and the further ones, without repeats."""
    return tuple(dict.fromkeys((page, *further_pages.get())))


def present(
    found: dict[str, Any],
    printing: Printing,
    page: Path | None = None,
    wrote: str = "",
    **shown: Any,
) -> None:
    """Write the page of a document, print it, and name the files written.

    Parameters
    ----------
    found : dict
        JSON of a command, with its schema.
    printing : Printing
    page : Path, optional
    wrote : str, default=""
        The last line; by default the page's name.
    **shown
        What the page and the terminal show beside the JSON.
    """
    from sonde.report.documents import save_document

    pages = () if page is None else pages_of(page)
    for each in pages:
        save_document(found, each, **shown)
    if printing.json:
        say_json(found)
    else:
        say_document(found, printing, **shown)
    if wrote or pages:
        note(f"wrote {wrote or ', '.join(map(str, pages))}")


def say_document(found: dict[str, Any], printing: Printing, **shown: Any) -> None:
    """Print a document at terminal width; in a pipe, tables keep their full width."""
    from sonde.report.documents import to_terminal

    room = terminal_width() or PIPE_TABLE
    words = {"verbose": printing.verbose, "quiet": printing.quiet, "width": text_width()}
    say(to_terminal(found, **words, room=room, **shown))
