"""The difference of two reports as text and as a page."""

from textwrap import wrap
from typing import Any, Final

from sonde.core.chart import Chart, curves
from sonde.report._fit import Rows, tip
from sonde.report._format import number, plural, quantity, shown, words
from sonde.report._markup import Markup, code, el, join
from sonde.report._parts import badge, definitions, drawer
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report._pictures_depth import PANELS, Panel, panel_axis
from sonde.report._select import runs
from sonde.report.diff import STATES, Entry, diff
from sonde.report.document import Document, Drawing, Part, Prose, Section, Table, figures
from sonde.report.document_page import document_page
from sonde.report.terminal import OWN, escaped

_SIDES: Final = {"A": "var(--c1)", "B": "var(--c2)"}
_WORDS: Final = {
    "new": "new",
    "worse": "worse",
    "gone": "gone",
    "better": "better",
    "same": "same",
    "unjudged": "not judged",
}
_MAX_ROWS: Final = 300


def diff_to_text(difference: dict[str, Any], width: int = 80, *, ascii: bool = False) -> str:
    """Return a difference for a terminal, in lines of at most ``width`` if words allow it.

    Parameters
    ----------
    difference : dict[str, Any]
        Document of a difference between two reports.
    width : int, default=80
        Number of characters in a line.
    ascii : bool, default=False
        Whether only ASCII characters are used.
    """
    difference = escaped(difference) if ascii else difference
    lines = [line for side in _sides(difference) for line in wrap(": ".join(side), width)]
    lines += wrap(provenance_line(difference), width)
    lines += ["-" * width, counts_line(difference), ""]
    for entry in difference["findings"]:
        level = entry["level_b"] or entry["level_a"]
        head = f"{_WORDS[entry['state']]:<11} {level:<8} {entry['code']}  {shown(entry['title'])}"
        lines += wrap(head, width, subsequent_indent=" " * 29)
        text = "; ".join(
            part for part in (_figures_cell(entry), _place(entry), _before(entry)) if part
        )
        if text and entry["state"] != "same":
            lines += wrap(text, width, initial_indent=" " * 12, subsequent_indent=" " * 12)
    for side in ("a", "b"):
        sites = difference[f"only_{side}"]
        if sites:
            text = f"only in {side.upper()}: {', '.join(shown(s, 60) for s in runs(sites, sites))}"
            lines += ["", *wrap(text, width)]
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    return "".join(OWN.get(letter, letter) for letter in text) if ascii else text


def _sides(difference: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the names of the two reports, A and B."""
    read = [(difference[side]["model"], difference[side]["data"]) for side in ("a", "b")]
    named = [f"{shown(model, 60)} on {shown(data, 60)}" for model, data in read]
    return list(zip(("A", "B"), named, strict=True))


def provenance_line(difference: dict[str, Any]) -> str:
    """Return one sentence on the differences in provenance."""
    differs = difference["differs"]
    if not differs:
        return "A and B: same model, data, settings and versions."
    texts = [f"{_key(row)} {shown(row['a'], 40)} -> {shown(row['b'], 40)}" for row in differs[:6]]
    more = f" and {len(differs) - 6} more" if len(differs) > 6 else ""
    text = f"A and B differ in {'; '.join(texts)}{more}."
    if not difference["comparable"]:
        text += " With a different reducer or number format, no finding is judged better or worse."
    return text


def _key(row: dict[str, Any]) -> str:
    """Return a key such as ``data.n_rows`` as words."""
    return words(row["key"].replace(".n_", ".")).replace(".", ": ")


def counts_line(difference: dict[str, Any]) -> str:
    """Return the numbers of new, worse, gone, better and unchanged findings."""
    counts = difference["counts"]
    return ", ".join(
        f"{counts[state]} {_WORDS[state]}" for state in STATES if counts[state] or state == "new"
    )


def _figures_cell(entry: Entry) -> str:
    both = (entry["figure_a"], entry["figure_b"])
    return " -> ".join(quantity(f["value"], f["unit"]) for f in both if f)


def _place(entry: Entry) -> str:
    names = [shown(site, 60) for site in entry["sites"][:3]]
    more = f" and {len(entry['sites']) - 3} more" if len(entry["sites"]) > 3 else ""
    return f"at {', '.join(names)}{more}" if names else ""


def _before(entry: Entry) -> str:
    """Return why a finding may be new or gone although the model is unchanged."""
    for state, key, name in (("new", "before", "A"), ("gone", "after", "B")):
        other = entry[key]
        if entry["state"] == state and other not in {"clear", "raised"}:
            return f"{words(other or 'not checked')} in {name}"
    return ""


def diff_to_html(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return the difference of two reports as one self-contained page.

    Parameters
    ----------
    a, b : dict
        JSON of two scans; ``a`` is the older one, drawn in the same colour everywhere.
    """
    difference = diff(a, b)
    sides = _sides(difference)
    document = Document(
        "scan, two reports",
        f"{sides[0][1]} → {sides[1][1]}",
        counts_line(difference),
        sides,
        [
            _findings_section(difference),
            _depth_section(a, b, difference),
            _source_section(difference),
        ],
        notes=[provenance_line(difference)],
    )
    return document_page(document, {**difference, "figures": difference["figures"][:_MAX_ROWS]})


def _findings_section(difference: dict[str, Any]) -> Section:
    entries = difference["findings"]
    parts: list[Part] = [Drawing(_card(entry)) for entry in entries if entry["state"] != "same"]
    same = [_card(entry) for entry in entries if entry["state"] == "same"]
    words = "Nothing changed." if entries else "Neither report has a finding."
    parts += [] if parts else [Prose(words, "empty")]
    if same:
        title = f"{plural(len(same), 'finding')} in both"
        parts.append(Drawing(drawer(title, *same, cls="more")))
    return Section("findings", "Findings", parts)


def _card(entry: Entry) -> Markup:
    level = entry["level_b"] or entry["level_a"]
    levels = ""
    if entry["level_a"] and entry["level_b"] and entry["level_a"] != entry["level_b"]:
        levels = f"was {entry['level_a']}"
    tags = [
        el("span", tag, cls="tag")
        for tag in (_WORDS[entry["state"]], levels, _before(entry))
        if tag
    ]
    head = el("div", badge(level), el("span", entry["code"], cls="code"), *tags, cls="top")
    sites = [join(", " if i else "", code(shown(s, 80))) for i, s in enumerate(entry["sites"][:6])]
    more = f" and {len(entry['sites']) - 6} more" if len(entry["sites"]) > 6 else ""
    sides = [side for side in ("A", "B") if entry[f"figure_{side.lower()}"]]
    pairs = [
        (" to ".join(sides), _figures_cell(entry)),
        ("at", join(*sites, more) if sites else None),
    ]
    parts = head, el("h3", entry["title"]), el("p", entry["sentence"]), definitions(pairs)
    return el("article", *parts, cls=f"card {level}")


def _depth_section(a: dict[str, Any], b: dict[str, Any], difference: dict[str, Any]) -> Section:
    parts = figures(*_pictures(a, b))
    rows = sorted(difference["figures"], key=lambda row: not row["moved"])
    cells = tuple(
        (r["site"], r["name"], r["a"], r["b"], r["se"], _moved(r)) for r in rows[:_MAX_ROWS]
    )
    columns = ("site", "figure", "A", "B", "se", "moved")
    parts += [Table(Numbers(columns, cells, "figures"), folded=True)] if cells else []
    n_known = sum(row["moved"] is not None for row in rows)
    moved = sum(bool(row["moved"]) for row in rows)
    lead = (
        f"Of {plural(n_known, 'figure')} with known standard errors, {moved} changed by more than "
        "three standard errors."
    )
    return Section("depth", "Depth profile", parts, lead)


def _moved(row: dict[str, Any]) -> str:
    return "no error known" if row["moved"] is None else "moved" if row["moved"] else "same"


def _pictures(a: dict[str, Any], b: dict[str, Any]) -> list[Picture]:
    sites = [row["site"] for row in b["sites"]]
    sites = [row["site"] for row in a["sites"] if row["site"] not in set(sites)] + sites
    axis = Axis.of(sites)
    pictures = []
    for panel in PANELS:
        points = _points(a, panel, axis, "A") + _points(b, panel, axis, "B")
        if {point["k"] for point in points} == {"A", "B"} and len(axis.sites) > 1:
            pictures.append(_picture(panel, points, axis))
    return pictures


def _points(report: dict[str, Any], panel: Panel, axis: Axis, side: str) -> Rows:
    points = []
    for row in report["sites"]:
        value = row["values"].get(panel.name, {}).get("value")
        if row["site"] in axis.names and value is not None and (value > 0 or not panel.log):
            text = tip(side, row["site"], quantity(value, panel.unit))
            ends = {"v": value, "lo": value, "hi": value}
            points.append(
                {"s": axis.names[row["site"]], "site": row["site"], "k": side, "tip": text} | ends
            )
    return points


def _picture(panel: Panel, points: Rows, axis: Axis) -> Picture:
    value = {(p["k"], p["site"]): p["v"] for p in points}
    both = [site for site in axis.sites if ("A", site) in value and ("B", site) in value]

    def draw(width: int) -> Chart:
        y = panel_axis(panel, points)
        return curves(message, points, axis.across(), y, by="k", colors=_SIDES) | {"height": 150}

    name = words(panel.name).capitalize()
    message = f"{name}: A and B share no site"
    if both:
        site = max(both, key=lambda s: abs(value["A", s] - value["B", s]))
        old, new = (quantity(value[side, site], panel.unit) for side in ("A", "B"))
        message = f"{name} differs most at {axis.say(site)}: {old} in A, {new} in B"
        if value["A", site] == value["B", site]:
            message = f"{name} is the same in A and B"
    return Picture(f"depth-{panel.name}", message, draw)


def _source_section(difference: dict[str, Any]) -> Section:
    rows = tuple((_key(r), _cell(r["a"]), _cell(r["b"])) for r in difference["differs"])
    numbers = Numbers(("what", "A", "B"), rows, "provenance")
    empty = Prose("Nothing differs.", "empty")
    parts: list[Part] = [Table(numbers, folded=False) if rows else empty]
    for side in ("a", "b"):
        sites = difference[f"only_{side}"]
        if sites:
            named = el("p", f"Sites in {side.upper()} only: ", code(", ".join(sites[:100])))
            parts.append(Drawing(named))
    return Section("provenance", "Provenance", parts)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return number(value) if isinstance(value, int | float) else shown(value)
