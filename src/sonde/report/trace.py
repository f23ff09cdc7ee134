"""Traces of pairs of texts, as one page."""

from pathlib import Path
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, matrix
from sonde.report._fit import NARROW, WIDE, tip
from sonde.report._format import number, plural, share, shown
from sonde.report._markup import ElementIds, Markup, el
from sonde.report._parts import figure, table
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.trace_terminal import FAITHFUL, place, trace_verdict

MOST_PAIRS: Final = 12
"""Pairs that are drawn; the JSON in the page holds all."""


def trace_to_html(found: dict[str, Any]) -> str:
    """Return a trace as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a trace, ``sonde-trace/1``.
    """
    names = ElementIds()
    live = [one for one in found["pairs"] if not one["dropped"]][:MOST_PAIRS]
    parts = [_maps(found, live, names), _estimates(found, live, names), _circuits(live, names)]
    return document_page(found, _head(found), parts if live else [])


def save_trace(found: dict[str, Any], path: str | Path) -> Path:
    """Write a trace as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, trace_to_html, "save_trace")


def _head(found: dict[str, Any]) -> Head:
    kept = [one["circuit"]["faithfulness"] for one in found["pairs"] if one["circuit"]]
    is_kept = bool(kept) and min(kept) >= FAITHFUL
    one = found["pairs"][0]
    dropped = found["n_dropped"]
    facts = [
        ("model", shown(found["model"], 120)),
        ("pairs", f"{found['n']}" + (f", {dropped} without a difference" if dropped else "")),
        ("from", None if found["data"] is None else shown(found["data"], 120)),
        ("what is looked at", one["objective"]),
        (
            "states go",
            "clean into corrupted" if found["how"] == "denoise" else "corrupted into clean",
        ),
        ("restart", one["restart"]),
    ]
    return Head(
        "trace",
        "Where do the answers part?",
        trace_verdict(found),
        facts,
        subject=shown(found["model"], 100),
        badge=("clear", "a circuit") if is_kept else ("withheld", "no circuit"),
    )


def _maps(found: dict[str, Any], live: list[dict[str, Any]], names: ElementIds) -> Section:
    made: list[Markup] = []
    for i, one in enumerate(live):
        best = one["best"][0]
        message = f"{number(one['clean'])} clean, {number(one['corrupt'])} corrupted; most at "
        message += f"position {best['position']} ({place(one, best['position'])})"
        picture = shares_picture(f"patched-{i}", message, one, one["patched"], found["sites"])
        made += [*_title(i, live), figure(picture, names)]
    lead = "Each cell: one state of one run, put into the other run, and how much of the "
    lead += "difference between their answers it brings."
    return Section("maps", "Layers and positions", made, lead)


def _estimates(found: dict[str, Any], live: list[dict[str, Any]], names: ElementIds) -> Section:
    made: list[Markup] = []
    for i, one in enumerate(live):
        message = f"Estimates miss {number(one['gap'])} of the difference (root mean square)"
        picture = shares_picture(f"estimated-{i}", message, one, one["estimated"], found["sites"])
        made += [*_title(i, live), figure(picture, names)]
    lead = "The same by gradients: a few backwards in place of a forward for each cell. Where the "
    lead += "model bends between the two runs, they miss."
    return Section("estimates", "Estimates, and what they miss", made, lead)


def _circuits(live: list[dict[str, Any]], names: ElementIds) -> Section:
    made: list[Markup] = []
    for i, one in enumerate(live):
        made += _title(i, live)
        circuit = one["circuit"]
        if circuit is None:
            made.append(el("p", f"No circuit: {one['no_circuit']}"))
            continue
        said = f"{circuit['n_edges']} of {plural(circuit['n_all'], 'edge')} keep "
        said += f"{share(circuit['faithfulness'])} of the difference; as many at random "
        said += f"{share(circuit['random'])}; without them {share(circuit['without'])} is left."
        rows = tuple((e["writer"], e["reader"], e["needed"]) for e in circuit["edges"])
        numbers = Numbers(("writer", "reader", "lost without it"), rows, f"circuit-{i}")
        made += [el("p", said), table(numbers, names)]
    lead = "The fewest ways through the residual stream, from a layer that writes to a module that "
    lead += "reads, with every other way corrupted."
    return Section("circuit", "The circuit", made, lead)


def _title(i: int, live: list[dict[str, Any]]) -> list[Markup]:
    return [el("h3", f"pair {i}")] if len(live) > 1 else []


_MOST: Final = {WIDE: 48, NARROW: 24}
_POSITIONS: Final = {WIDE: 64, NARROW: 24}


def shares_picture(
    key: str, message: str, one: dict[str, Any], values: list[list[float | None]], sites: list[str]
) -> Picture:
    """Return the shares of one pair, positions across and layers upward."""
    names = [f"{i} {shown(place(one, i), 14)}" if one["tokens"] else str(i)
             for i in range(len(values[0]))]  # fmt: skip

    def draw(width: int) -> Chart:
        axis = Axis.of(sites, _MOST[width])
        size = [max(abs(row[i] or 0.0) for row in values) for i in range(len(names))]
        kept = sorted(sorted(range(len(names)), key=lambda i: -size[i])[: _POSITIONS[width]])
        cells = [
            {
                "a": names[i],
                "b": axis.names[site],
                "share": row[i],
                "tip": tip(site, names[i], f"share {number(row[i])}"),
            }
            for site, row in zip(sites, values, strict=True)
            if site in axis.names
            for i in kept
        ]
        x = ChartAxis("a", title="", names=[names[i] for i in kept])
        ends: Any = {"low": -1, "high": 1, "two_sided": True}
        made = matrix(message, cells, x, axis.upward("b"), "share", **ends)
        return made | {"height": max(60, min(22 * len(axis.labels), 420))}

    rows = tuple((site, *row) for site, row in zip(sites, values, strict=True))
    note = "Share of the difference between the two runs: 0 nothing, 1 all. Positions across, "
    note += "layers upward; the positions with the largest shares where there are many."
    return Picture(key, message, draw, Numbers(("site", *names), rows, key), note)
