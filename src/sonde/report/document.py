"""The output of a command: a verdict, facts, and sections of text, tables and pictures.

A page (``document_page``) and a terminal (``document_text``) draw the same document; its JSON is
what it was made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, final

from sonde.report._markup import Markup
from sonde.report._picture import Numbers, Picture

Where = Literal["both", "page", "terminal", "verbose"]
"""``verbose``: shown on the page, and in a terminal only with ``-v``."""
MOST_ROWS: Final = 16


@final
@dataclass(frozen=True, eq=False)
class Prose:
    """A paragraph.

    Parameters
    ----------
    text : str
    kind : {"plain", "heading", "small", "empty", "name"}
        ``empty`` says that there is nothing to show; ``name`` is a name or a path.
    where : {"both", "page", "terminal", "verbose"}
    """

    text: str
    kind: Literal["plain", "heading", "small", "empty", "name"] = "plain"
    where: Where = "both"


@final
@dataclass(frozen=True, eq=False)
class Finding:
    """A finding as a sentence.

    Parameters
    ----------
    level : {"error", "warning", "note"}
    code : str
    text : str
    where : {"both", "page", "terminal", "verbose"}
    """

    level: str
    code: str
    text: str
    where: Where = "both"


@final
@dataclass(frozen=True, eq=False)
class Command:
    """A command that the user can copy.

    Parameters
    ----------
    text : str
    where : {"both", "page", "terminal", "verbose"}
    """

    text: str
    where: Where = "both"


@final
@dataclass(frozen=True, eq=False)
class Table:
    """A table of numbers.

    Parameters
    ----------
    numbers : Numbers
    title : str
        Its caption, or the label of the drawer that holds it.
    folded : bool or None
        Whether a drawer that holds it is closed; None for a table without a drawer.
    kinds : mapping of str to str
        By column: ``p`` (p-values), ``share`` (per cent), ``number``, ``state``, ``code``.
    meanings : mapping of str to str
        By column: what its figures mean.
    brief : sequence of str
        Columns in a terminal; all if empty.
    most : int
        Rows in a terminal that was not asked for everything.
    where : {"both", "page", "terminal", "verbose"}
    """

    numbers: Numbers
    title: str = ""
    folded: bool | None = None
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    meanings: Mapping[str, str] = field(default_factory=dict[str, str])
    brief: Sequence[str] = ()
    most: int = MOST_ROWS
    where: Where = "both"


@final
@dataclass(frozen=True, eq=False)
class Figure:
    """A picture with its message; a terminal prints the message and some of its numbers.

    Parameters
    ----------
    picture : Picture
    most : int
        Rows of its numbers in a terminal.
    brief : sequence of str
        Their columns in a terminal; all if empty.
    where : {"both", "page", "terminal", "verbose"}
    """

    picture: Picture
    most: int = 0
    brief: Sequence[str] = ()
    where: Where = "both"


@final
@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawing for a page, such as an input, and its replacement text in a terminal.

    Parameters
    ----------
    markup : Markup
    lines : sequence of str
    where : {"both", "page", "terminal", "verbose"}
    """

    markup: Markup
    lines: Sequence[str] = ()
    where: Where = "both"


Part = Prose | Finding | Command | Table | Figure | Drawing


@final
@dataclass(frozen=True, eq=False)
class Section:
    """Parts under a title.

    Parameters
    ----------
    key : str
        Its anchor on a page.
    title : str
    parts : sequence of Part
    lead : str
        A sentence before them.
    where : {"both", "page", "terminal", "verbose"}
    """

    key: str
    title: str
    parts: Sequence[Part]
    lead: str = ""
    where: Where = "both"


@final
@dataclass(frozen=True, eq=False)
class Document:
    """The complete output of a command.

    Parameters
    ----------
    command : str
        The word of ``sonde`` that made it.
    heading : str
        One line for people.
    verdict : str
        The answer in a sentence.
    facts : sequence of (str, str or None)
        Names and values; those without a value are left out.
    sections : sequence of Section or None
        Those that are None or hold nothing are left out.
    subject : str
        What it is about, for the title of the window; the heading where it is empty.
    badge : (str, str), optional
        Level and word before the verdict.
    notes : sequence of str
        A paragraph each.
    script : str
        Runs on the page after the one that all pages have.
    """

    command: str
    heading: str
    verdict: str
    facts: Sequence[tuple[str, str | None]]
    sections: Sequence[Section | None]
    subject: str = ""
    badge: tuple[str, str] | None = None
    notes: Sequence[str] = ()
    script: str = ""

    def kept(self) -> list[Section]:
        """Return the sections that are not empty."""
        return [part for part in self.sections if part is not None and (part.parts or part.lead)]


def figures(*pictures: Picture | None, where: Where = "both") -> list[Part]:
    """Return the available pictures as parts of a section."""
    return [Figure(picture, where=where) for picture in pictures if picture is not None]
