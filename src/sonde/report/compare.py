"""Two models on the same inputs, as one page."""

from pathlib import Path
from typing import Any, Final

from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.files.durable import atomic_write
from sonde.report._format import number, share, shown
from sonde.report._markup import Markup, Names, el, join
from sonde.report._parts import definitions, figure, section, tabled
from sonde.report._picture import Numbers
from sonde.report._pictures_compare import alike_picture, map_picture, moved_picture
from sonde.report.compare_terminal import FOUND_AGAIN, compare_verdict, rows_sentence
from sonde.report.files import sealed_json, sealed_page
from sonde.report.html import contents, page

ENDINGS: Final = (".html", ".htm", ".json")
_TITLES: Final = {
    "map": "Layer by layer",
    "alike": "Along the depth",
    "moved": "What moved",
    "units": "Units found again",
}


def compare_to_html(found: dict[str, Any]) -> str:
    """Return a comparison as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a comparison, ``sonde-compare/1``.
    """
    names = Names()
    parts = {
        "map": section("map", _TITLES["map"], figure(map_picture(found), names)),
        "alike": _drawn("alike", alike_picture(found), names),
        "moved": _drawn("moved", moved_picture(found), names),
        "units": _units(found, names),
    }
    sections = {key: _TITLES[key] for key, part in parts.items() if part is not None}
    made = [part for part in parts.values() if part is not None]
    body = join(_header(found), contents("toc", sections), *made)
    title = f"{shown(found['first'], 60)} and {shown(found['second'], 60)}: sonde compare"
    return page(title, compare_verdict(found), body, found, sections)


def save_compare(found: dict[str, Any], path: str | Path) -> Path:
    """Write a comparison as a page (``.html``) or as JSON, by the name's ending."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise InputError(
            f"save_compare: expected a name that ends in .html or .json, got {str(path)!r}."
        )
    sealed = sealed_json(found) if kind == ".json" else sealed_page(compare_to_html(found))
    atomic_write(path, sealed.encode())
    return path


def _header(found: dict[str, Any]) -> Markup:
    both = found["answers"]
    facts = [
        ("first", shown(found["first"], 120)),
        ("second", shown(found["second"], 120)),
        ("data", shown(found["data"], 120)),
        ("rows", rows_sentence(found)),
    ]
    if both is not None:
        facts.append(("same answer", f"{share(both['same'])} of {plural(both['n'], 'example')}"))
        if both["loss"][0] is not None:
            right = " and ".join(share(v) for v in both["right"])
            loss = " and ".join(f"{number(v)} nats" for v in both["loss"])
            facts += [("right, first and second", right), ("loss, first and second", loss)]
    return el(
        "header",
        el("p", "sonde compare", cls="brand"),
        el("h1", "Two models on the same inputs"),
        el("p", compare_verdict(found), cls="verdict"),
        definitions(facts),
    )


def _drawn(key: str, made: Any, names: Names) -> Markup | None:
    return None if made is None else section(key, _TITLES[key], figure(made, names))


def _units(found: dict[str, Any], names: Names) -> Markup:
    columns = ("site", "partner", "units found again", "Procrustes distance", "flags")
    rows = tuple(
        (m["site"], m["other"], m["found_again"], m["distance"], ", ".join(m["flags"]) or None)
        for m in found["matches"]
    )
    lead = f"Share of the first model's units that correlate by at least {FOUND_AGAIN} with a unit "
    lead += (
        "of the second: near 1 where training found the same units, low where it found the same "
    )
    lead += "space by others. The distance is that after the best rotation, in [0, 2]."
    made = tabled(Numbers(columns, rows, "units"), names, "Sites", opened=len(rows) <= 24)
    return section("units", _TITLES["units"], made, lead=lead)
