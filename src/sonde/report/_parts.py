"""Pieces that sections share: badges, commands, tables, pictures."""

import re
from collections.abc import Sequence
from typing import Final

from sonde.report._draw import picture
from sonde.report._fit import NARROW, WIDE
from sonde.report._format import number, p_value, plural, share, shown, tied, words
from sonde.report._markup import ElementIds, Markup, code, el, join
from sonde.report._picture import Cell, Numbers, Picture

_SHAPES: Final = {
    "error": "M6 1h8l5 5v8l-5 5H6l-5-5V6z",
    "warning": "M10 1.5 19.2 18H.8z",
    "note": "M10 1a9 9 0 1 0 .01 0z",
    "clear": "M2 10.5 7.5 16 18 4.5",
    "withheld": "M3 10h14",
    "not_applicable": "M8 10h4",
    "failed": "M10 1 19 10 10 19 1 10z",
}
PICTURE: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")
LONG: Final = 40
P_VALUES: Final = ("p", "adjusted", "adjusted p")
_OPEN: Final = frozenset({"clear", "withheld", "not_applicable"})


def badge(level: str, label: str = "") -> Markup:
    """Return the symbol and the word of a level or a state."""
    kind = "stroke" if level in _OPEN else "fill"
    shape = el("path", d=_SHAPES[level], cls=f"{kind} {level}")
    icon = el("svg", shape, viewBox="0 0 20 20", aria_hidden="true", cls="icon")
    return el("span", icon, " ", el("span", label or words(level)), cls=f"badge {level}")


def command(text: str) -> Markup:
    """Return a command with a button that copies it."""
    button = el(
        "button", "Copy", type="button", data_copy=text, aria_label=f"Copy: {shown(text, 80)}"
    )
    return el("div", code(text), button, cls="command")


def drawer(title: str, *body: str | None, cls: str = "", opened: bool = False) -> Markup:
    """Return a collapsible part that works by mouse and by keyboard."""
    inside = el("div", *body, cls="inside")
    return el("details", el("summary", title), inside, cls=cls or None, open=opened)


def table(
    numbers: Numbers, names: ElementIds, caption: str = "", kinds: dict[int, str] | None = None
) -> Markup:
    """Return a table that scrolls inside its box, with right-aligned numbers.

    ``kinds`` says what the cells of a column are: p, share, number, state or code.
    """
    key = names.new("table")
    kind_of = {"input": "input", **dict.fromkeys(P_VALUES, "p")}
    kinds = {i: kind_of[n] for i, n in enumerate(numbers.columns) if n in kind_of} | (kinds or {})
    right = [
        i > 0 and (kinds.get(i) == "number" or _numeric(numbers, i))
        for i in range(len(numbers.columns))
    ]
    heads = zip(numbers.columns, right, strict=True)
    head = el("tr", *(el("th", name, scope="col", cls="n" if n else None) for name, n in heads))
    body = [
        el("tr", *(_cell(value, i, kinds.get(i, "")) for i, value in enumerate(row)))
        for row in numbers.rows
    ]
    title = el("caption", caption) if caption else None
    drawn = el("table", title, el("thead", head), el("tbody", *body), id=key)
    return el(
        "div", drawn, cls="scroll", tabindex="0", role="region", aria_label=caption or numbers.name
    )


def _numeric(numbers: Numbers, column: int) -> bool:
    values = [row[column] for row in numbers.rows if row[column] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _cell(value: Cell, column: int, kind: str) -> Markup:
    if column == 0:
        return el("th", _cell_markup(value, kind), scope="row", data_v=_exact(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return el("td", _cell_markup(value, kind), cls="n", data_v=_exact(value))
    if kind == "state" and isinstance(value, str):
        return el("td", badge(value, "raised" if value in {"error", "warning", "note"} else ""))
    look = "n" if value is None or kind == "number" else "long" if len(str(value)) > LONG else None
    return el("td", _cell_markup(value, kind), cls=look, data_v=_exact(value))


def _cell_markup(value: Cell, kind: str) -> Markup | str:
    if value is None:
        return "–"
    if isinstance(value, int | float):
        if kind == "share":
            return share(value)
        return p_value(value, 4) if kind == "p" else number(value, 4)
    if kind == "input" and PICTURE.fullmatch(value):
        return el("img", src=value, alt="the input", cls="thumb")
    return code(value) if kind == "code" else shown(value)


def _exact(value: Cell) -> str | None:
    """Return the exact value for the copied CSV if the cell is rounded."""
    if value is None:
        return ""
    if isinstance(value, str) or number(value, 4) == repr(value):
        return None
    return repr(value)


def figure(made: Picture, names: ElementIds) -> Markup:
    """Return a picture in two widths with its message, a reading aid, and its numbers."""
    key = names.new(made.key)
    wide = picture(made.draw(WIDE), made.message, f"{key}w", "wide")
    narrow = picture(made.draw(NARROW), made.message, f"{key}n", "narrow")
    note = el("p", made.note, cls="reading") if made.note else None
    tools = tabled(made.numbers, names) if made.numbers else None
    message = el("figcaption", tied(made.message))
    return el(
        "figure",
        message,
        note,
        wide,
        narrow,
        tools,
        cls="picture square" if made.square else "picture",
    )


def tabled(
    numbers: Numbers,
    names: ElementIds,
    label: str = "Table",
    opened: bool = False,
    kinds: dict[int, str] | None = None,
) -> Markup:
    """Return a collapsible table with a button that copies it as CSV."""
    drawn = table(numbers, names, "", kinds)
    key = drawn.split(' id="', 1)[1].split('"', 1)[0]
    button = el("button", "Copy CSV", type="button", data_csv=key)
    title = f"{label} ({plural(len(numbers.rows), 'row')})"
    return join(el("div", drawer(title, drawn, opened=opened), button, cls="tools"))


def section(key: str, title: str, *body: str | None, lead: str = "") -> Markup:
    """Return a section with an anchor link."""
    link = el("a", "#", href=f"#{key}", cls="anchor", aria_label=f"Link to {title}")
    heading = el("h2", title, link)
    intro = el("p", lead, cls="lead") if lead else None
    return el("section", heading, intro, *body, id=key, aria_label=title)


def absent(title: str, why: str) -> Markup:
    """Return the line that explains a missing section; the page lists it as a limit."""
    return el("li", el("b", title), ": ", why, cls="absent")


def is_absent(part: Markup) -> bool:
    """Return whether a part only explains a missing section."""
    return part.startswith("<li")


def definitions(pairs: Sequence[tuple[str, str | None]]) -> Markup:
    """Return a list of names and values; names without a value are left out."""
    rows = [el("div", el("dt", name), el("dd", value)) for name, value in pairs if value]
    return el("dl", *rows)
