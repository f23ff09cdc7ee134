"""Traces of pairs of texts, as one page."""

from pathlib import Path
from typing import Any, Final

from sonde.report._format import number, plural, share, shown
from sonde.report._markup import Markup, Names, el
from sonde.report._parts import figure, table
from sonde.report._picture import Numbers
from sonde.report._pictures_trace import shares_picture
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
    names = Names()
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


def _maps(found: dict[str, Any], live: list[dict[str, Any]], names: Names) -> Section:
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


def _estimates(found: dict[str, Any], live: list[dict[str, Any]], names: Names) -> Section:
    made: list[Markup] = []
    for i, one in enumerate(live):
        message = f"Estimates miss {number(one['gap'])} of the difference (root mean square)"
        picture = shares_picture(f"estimated-{i}", message, one, one["estimated"], found["sites"])
        made += [*_title(i, live), figure(picture, names)]
    lead = "The same by gradients: a few backwards in place of a forward for each cell. Where the "
    lead += "model bends between the two runs, they miss."
    return Section("estimates", "Estimates, and what they miss", made, lead)


def _circuits(live: list[dict[str, Any]], names: Names) -> Section:
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
