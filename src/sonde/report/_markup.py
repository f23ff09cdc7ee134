"""Build HTML in which every text that is not markup is escaped."""

from html import escape
from itertools import count
from typing import Final, final

from sonde.report._format import shown

_UNBROKEN: Final = 24
VOID: Final = frozenset({"meta", "link", "br"})


@final
class Markup(str):
    """Text that is already HTML; only ``el`` and ``join`` create it."""

    __slots__ = ()


def el(tag: str, *children: str | None, cls: str | None = None, **attributes: object) -> Markup:
    """Return an element; children that are not ``Markup`` are escaped, None is left out.

    A trailing underscore of an attribute's name is dropped, others become hyphens; None and False
    leave the attribute out. Values are cut at 4,000 letters, ``Markup`` is not.

    Examples
    --------
    >>> el("p", "1 < 2", el("b", "x"), cls="note", data_tip='"', hidden=True, id=None)
    '<p class="note" data-tip="&quot;" hidden>1 &lt; 2<b>x</b></p>'
    """
    pairs = {"class": cls, **attributes}
    written = "".join(_attribute(name, value) for name, value in pairs.items())
    body = "".join(text(child) for child in children if child is not None)
    return Markup(
        f"<{tag}{written}>" if tag in VOID and not body else f"<{tag}{written}>{body}</{tag}>"
    )


def text(value: str) -> Markup:
    """Return markup unchanged, and any other text escaped and on one line."""
    return value if isinstance(value, Markup) else Markup(escape(shown(value, 4000)))


def join(*parts: str | None) -> Markup:
    """Join parts, with those escaped that are not markup."""
    return Markup("".join(text(part) for part in parts if part is not None))


def code(value: str) -> Markup:
    """Return a name or a command in the fixed-width font; its short words are never broken."""
    words = [escape(word) for word in shown(value, 4000).split(" ")]
    kept = [f'<span class="w">{w}</span>' if 0 < len(w) <= _UNBROKEN else w for w in words]
    return Markup(f"<code>{' '.join(kept)}</code>")


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    written = value if isinstance(value, Markup) else shown(value, 4000)
    return f" {name}" if value is True else f' {name}="{escape(written)}"'


@final
class ElementIds:
    """Distinct element ids of one page."""

    def __init__(self) -> None:
        self._next = count(1)

    def new(self, stem: str) -> str:
        """Return an id that this page has not used."""
        return f"{stem}-{next(self._next)}"
