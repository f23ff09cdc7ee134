"""Two models on the same inputs, as one page."""

from pathlib import Path
from typing import Any

from sonde.core.wording import plural
from sonde.report._format import number, share, shown
from sonde.report._markup import ElementIds, code, el
from sonde.report._parts import badge, figure, tabled
from sonde.report._picture import Numbers, Picture
from sonde.report._pictures_compare import alike_picture, map_picture, moved_picture
from sonde.report.compare_terminal import FOUND_AGAIN, compare_verdict, rows_sentence
from sonde.report.document import Head, Section, document_page, save_document


def compare_to_html(found: dict[str, Any]) -> str:
    """Return a comparison as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a comparison, ``sonde-compare/1``.
    """
    names = ElementIds()
    depth = figure(map_picture(found), names)
    return document_page(
        found,
        _head(found),
        [
            _findings(found),
            Section("map", "Layer by layer", [depth]),
            _drawn("alike", "Along the depth", alike_picture(found), names),
            _drawn("moved", "What moved", moved_picture(found), names),
            _units(found, names),
        ],
    )


def save_compare(found: dict[str, Any], path: str | Path) -> Path:
    """Write a comparison as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, compare_to_html, "save_compare")


def _head(found: dict[str, Any]) -> Head:
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
    return Head(
        "compare",
        "Two models on the same inputs",
        compare_verdict(found),
        facts,
        subject=f"{shown(found['first'], 60)} and {shown(found['second'], 60)}",
    )


def _findings(found: dict[str, Any]) -> Section | None:
    said = [
        el("p", badge(f["level"]), " ", code(f["code"]), " ", shown(f["sentence"], 240))
        for f in found.get("findings", [])
    ]
    return Section("findings", "Findings", said) if said else None


def _drawn(key: str, title: str, made: Picture | None, names: ElementIds) -> Section | None:
    return None if made is None else Section(key, title, [figure(made, names)])


def _units(found: dict[str, Any], names: ElementIds) -> Section:
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
    return Section("units", "Units found again", [made], lead)
