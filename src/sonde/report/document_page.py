"""A document as one HTML page that works offline and embeds its JSON."""

from typing import Any

from sonde.report._format import shown
from sonde.report._markup import ElementIds, Markup, code, el, join
from sonde.report._page import contents, page
from sonde.report._parts import badge, command, definitions, figure, section, table, tabled
from sonde.report.document import Command, Document, Drawing, Figure, Finding, Part, Prose, Table


def document_page(
    document: Document, carried: dict[str, Any], names: ElementIds | None = None
) -> str:
    """Return a document as a page.

    Parameters
    ----------
    document : Document
    carried : dict
        The JSON that the page carries.
    names : ElementIds, optional
        Element ids of what was drawn for the page before.
    """
    names = names or ElementIds()
    kept = [s for s in document.kept() if s.where != "terminal"]
    titles = {part.key: part.title for part in kept}
    sections = [
        section(s.key, s.title, *(_part(part, names) for part in s.parts), lead=s.lead)
        for s in kept
    ]
    body = join(_head(document), contents("toc", titles), *sections)
    title = f"{shown(document.subject or document.heading, 160)}: sonde {document.command}"
    return page(title, document.verdict, body, carried, titles, document.script)


def embedded(document: Document, names: ElementIds) -> Markup:
    """Return facts and sections of a document as a part of another page."""
    parts_drawn = [definitions(document.facts)]
    for kept in document.kept():
        if kept.where != "terminal":
            parts = [_part(part, names) for part in kept.parts]
            lead = [el("p", kept.lead, cls="reading")] if kept.lead else []
            parts_drawn += [el("h3", kept.title), *lead, *filter(None, parts)]
    return join(*parts_drawn)


def _head(document: Document) -> Markup:
    mark = () if document.badge is None else (badge(*document.badge), " ")
    return el(
        "header",
        el("p", f"sonde {document.command}", cls="brand"),
        el("h1", document.heading),
        el("p", *mark, document.verdict, cls="verdict"),
        definitions(document.facts),
        *(el("p", note, cls="reading") for note in document.notes),
    )


def _part(part: Part, names: ElementIds) -> Markup | None:
    if part.where == "terminal":
        return None
    match part:
        case Prose(text, kind):
            if kind == "name":
                return el("p", code(text))
            looks = {"small": "reading", "empty": "empty"}
            return el("h3" if kind == "heading" else "p", text, cls=looks.get(kind))
        case Finding(level, name, text):
            return el("p", badge(level), " ", code(name), " ", text)
        case Command(text):
            return command(text)
        case Figure(picture):
            return figure(picture, names)
        case Drawing(markup):
            return markup
        case Table():
            return _table(part, names)


def _table(part: Table, names: ElementIds) -> Markup:
    columns = part.numbers.columns
    kinds = {i: part.kinds[name] for i, name in enumerate(columns) if name in part.kinds}
    if part.folded is None:
        drawn = table(part.numbers, names, part.title, kinds)
    else:
        label = part.title or "Table"
        drawn = tabled(part.numbers, names, label, opened=not part.folded, kinds=kinds)
    meanings = [(name, meaning) for name, meaning in part.meanings.items() if name in columns]
    return join(drawn, definitions(meanings)) if meanings else drawn
