"""The frame that the pages of all commands but ``scan`` share: head, sections, file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sonde.core.errors import InputError
from sonde.files.durable import atomic_write
from sonde.report._format import shown
from sonde.report._markup import Markup, el, join
from sonde.report._parts import badge, definitions, section
from sonde.report.files import sealed_json, sealed_page
from sonde.report.html import contents, page

ENDINGS: Final = (".html", ".htm", ".json")


@dataclass(frozen=True, eq=False)
class Head:
    """What stands at the top of a page.

    Parameters
    ----------
    command : str
        The word of ``sonde`` that made it.
    subject : str
        What it is about, for the title of the window; the heading where it is empty.
    heading : str
        One line for people.
    verdict : str
        The answer in a sentence.
    facts : sequence of (str, str or None)
        Names and values; those without a value are left out.
    badge : (str, str), optional
        Level and word before the verdict.
    notes : sequence of str, optional
        A paragraph each.
    """

    command: str
    heading: str
    verdict: str
    facts: Sequence[tuple[str, str | None]]
    subject: str = ""
    badge: tuple[str, str] | None = None
    notes: Sequence[str] = ()

    def markup(self) -> Markup:
        """Return the head as HTML."""
        mark = () if self.badge is None else (badge(*self.badge), " ")
        return el(
            "header",
            el("p", f"sonde {self.command}", cls="brand"),
            el("h1", self.heading),
            el("p", *mark, self.verdict, cls="verdict"),
            definitions(self.facts),
            *(el("p", note, cls="reading") for note in self.notes),
        )


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page: its anchor, its title, what it holds, and a sentence before that."""

    key: str
    title: str
    body: Sequence[Markup]
    lead: str = ""


def document_page(
    found: dict[str, Any], head: Head, parts: Sequence[Section | None], *, script: str = ""
) -> str:
    """Return a self-contained page that carries its JSON; sections that are None are left out.

    ``script`` runs after the one that all pages have.
    """
    kept = [part for part in parts if part is not None]
    titles = {part.key: part.title for part in kept}
    made = [section(part.key, part.title, *part.body, lead=part.lead) for part in kept]
    body = join(head.markup(), contents("toc", titles), *made)
    title = f"{shown(head.subject or head.heading, 160)}: sonde {head.command}"
    return page(title, head.verdict, body, found, titles, script)


def save_document(
    found: dict[str, Any], path: str | Path, draw: Callable[[dict[str, Any]], str], asked: str
) -> Path:
    """Write a page (``.html``) or its JSON, by the name's ending; ``asked`` names the function.

    Raises
    ------
    InputError
        If the name ends otherwise.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise InputError(
            f"{asked}: expected a name that ends in .html or .json, got {str(path)!r}."
        )
    sealed = sealed_json(found) if kind == ".json" else sealed_page(draw(found))
    atomic_write(path, sealed.encode())
    return path
