"""Traces of pairs of texts: the states that make the answers differ."""

from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, matrix
from sonde.report._fit import NARROW, WIDE, tip
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Document, Figure, Part, Prose, Section, Table

MOST_PAIRS: Final = 12
"""Number of pairs that are shown; the JSON contains all."""
FAITHFUL: Final = 0.8
LEAST: Final = 0.01
"""Smallest fraction of the difference that a state is said to carry."""
_MOST: Final = {WIDE: 48, NARROW: 24}
_POSITIONS: Final = {WIDE: 64, NARROW: 24}
MOST_COLUMNS: Final = 8


def document(found: dict[str, Any]) -> Document:
    """Return a trace as a document: the states that carry the difference, and the circuit.

    Parameters
    ----------
    found : dict
        JSON of a trace, ``sonde-trace/1``.
    """
    live = [one for one in found["pairs"] if not one["dropped"]][:MOST_PAIRS]
    kept = [one["circuit"]["faithfulness"] for one in found["pairs"] if one["circuit"]]
    is_kept = bool(kept) and all(FAITHFUL <= part <= 2 - FAITHFUL for part in kept)
    one, dropped = found["pairs"][0], found["n_dropped"]
    is_denoised = found["how"] == "denoise"
    facts = [
        ("model", shown(found["model"], 120)),
        ("pairs", f"{found['n']}" + (f", {dropped} without a difference" if dropped else "")),
        ("from", None if found["data"] is None else shown(found["data"], 120)),
        ("answer, measured by", one["objective"]),
        ("states go", "clean into corrupted" if is_denoised else "corrupted into clean"),
        ("restart", one["restart"]),
    ]
    sections = [_maps(found, live), _estimates(found, live), _circuits(live)] if live else []
    return Document(
        "trace",
        "Where do the two answers diverge?",
        _verdict(found),
        facts,
        sections,
        subject=shown(found["model"], 100),
        badge=("clear", "a circuit") if is_kept else ("withheld", "no circuit"),
    )


def _verdict(found: dict[str, Any]) -> str:
    """Return a sentence on the states that make the answers differ."""
    live = [one for one in found["pairs"] if not one["dropped"]]
    if not live:
        return "The model gives both texts the same answer, so there is no difference to trace."
    if len(live) > 1:
        kept = [one["circuit"]["faithfulness"] for one in live if one["circuit"]]
        part = f"{plural(len(live), 'pair')} traced"
        if not kept:
            return f"{part}."
        return f"{part}; circuits keep {share(sum(kept) / len(kept), 2)} of the difference."
    one = live[0]
    top, circuit, turned = _top(one, found["sites"]), one["circuit"], _turned(one)
    if circuit is None:
        return f"{top}; no circuit.{turned}"
    ways = f"{circuit['n_edges']} of {plural(circuit['n_all'], 'edge')}"
    return f"{top}; {ways} keep {share(circuit['faithfulness'], 2)} of the difference.{turned}"


def _turned(one: dict[str, Any]) -> str:
    """Return a warning if the corrupted text gives the answer more than the clean text does."""
    if one["clean"] >= one["corrupt"]:
        return ""
    return (
        f" The corrupted text gives the answer more ({number(one['corrupt'])}) than the clean text "
        f"does ({number(one['clean'])}): check the answer, or exchange the texts."
    )


def _top(one: dict[str, Any], sites: list[str]) -> str:
    """Return which state before the last position carries most of the difference, if any does."""
    last = len(one["patched"][0]) - 1
    carriers = (b for b in one["best"] if b["position"] < last and abs(b["share"] or 0.0) >= LEAST)
    best = next(carriers, None)
    if best is None:
        token = f" ({_place(one, last)})" if one["tokens"] else ""
        return (
            f"No state before the last position{token} carries {LEAST:.0%} of the difference"
        ).replace("%", " %")
    token = f" ({_place(one, best['position'])})" if one["tokens"] else ""
    site = Axis.of(sites).say(best["site"])
    return f"Before the last position, {site} at position {best['position']}{token} carries most"


def _place(one: dict[str, Any], i: int) -> str:
    """Return a position as its token, or as a number if there are no tokens."""
    if not one["tokens"]:
        return str(i)
    clean, corrupt = one["tokens"][i], one["corrupt_tokens"][i]
    word = repr(shown(clean, 16))
    return word if clean == corrupt else f"{word} for {shown(corrupt, 16)!r}"


def _maps(found: dict[str, Any], live: list[dict[str, Any]]) -> Section:
    parts: list[Part] = []
    for i, one in enumerate(live):
        best = one["best"][0]
        message = f"{number(one['clean'])} clean, {number(one['corrupt'])} corrupted; most at "
        message += f"position {best['position']} ({_place(one, best['position'])})"
        picture = _shares(f"patched-{i}", message, one, one["patched"], found["sites"])
        parts += [*_title(i, live), Figure(picture), _largest(one, found["sites"], i)]
    lead = (
        "Each cell: one state of one run is put into the other run; the colour is the fraction of "
        "the difference between their answers that it restores: 0 none, 1 all."
    )
    return Section("maps", "Layers and positions", parts, lead)


def _largest(one: dict[str, Any], sites: list[str], i: int) -> Table:
    """Return the largest fractions with their positions, last layer first."""
    rows = one["patched"]
    size = [max(abs(row[at] or 0.0) for row in rows) for at in range(len(rows[0]))]
    kept = sorted(sorted(range(len(size)), key=lambda at: -size[at])[:MOST_COLUMNS])
    axis = Axis.of(sites, MOST_PAIRS)
    columns = ("site", *(f"{at}" for at in kept))
    cells = tuple(
        (axis.names[site], *(row[at] for at in kept))
        for site, row in reversed(list(zip(sites, rows, strict=True)))
        if site in axis.names
    )
    meanings = {f"{at}": _place(one, at) for at in kept} if one["tokens"] else {}
    return Table(Numbers(columns, cells, f"largest-{i}"), meanings=meanings, where="terminal")


def _estimates(found: dict[str, Any], live: list[dict[str, Any]]) -> Section:
    parts: list[Part] = []
    for i, one in enumerate(live):
        message = (
            f"The root mean square error of the estimates is {number(one['gap'])} of the difference"
        )
        picture = _shares(f"estimated-{i}", message, one, one["estimated"], found["sites"])
        parts += [*_title(i, live), Figure(picture)]
    lead = (
        "The same effects estimated by gradients: a few backward passes instead of a forward "
        "pass for each cell. If the model is nonlinear between the two runs, the estimates are "
        "wrong."
    )
    return Section("estimates", "Estimates by gradients, and their errors", parts, lead)


def _circuits(live: list[dict[str, Any]]) -> Section:
    parts: list[Part] = []
    for i, one in enumerate(live):
        parts += _title(i, live)
        circuit = one["circuit"]
        if circuit is None:
            parts.append(Prose(f"No circuit: {one['no_circuit']}"))
            continue
        words = (
            f"{circuit['n_edges']} of {plural(circuit['n_all'], 'edge')} keep "
            f"{share(circuit['faithfulness'])} of the difference; the same number of random "
            f"paths {share(circuit['random'])}; without them {share(circuit['without'])} remains."
        )
        rows = tuple((e["writer"], e["reader"], e["needed"]) for e in circuit["edges"])
        numbers = Numbers(("writer", "reader", "lost without it"), rows, f"circuit-{i}")
        kinds = {"writer": "site", "reader": "site"}
        parts += [Prose(words), Table(numbers, kinds=kinds, most=MOST_PAIRS)]
    lead = (
        "The smallest set of paths through the residual stream, from a layer that writes to a "
        "module that reads, with every other path corrupted."
    )
    return Section("circuit", "The circuit", parts, lead)


def _title(i: int, live: list[dict[str, Any]]) -> list[Part]:
    return [Prose(f"pair {i}", "heading")] if len(live) > 1 else []


def _shares(
    key: str, message: str, one: dict[str, Any], values: list[list[float | None]], sites: list[str]
) -> Picture:
    """Return the fractions of one pair as an image: positions across, layers upward."""
    names = [f"{i} {shown(_place(one, i), 14)}" if one["tokens"] else str(i)
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
        chart = matrix(message, cells, x, axis.upward("b"), "share", **ends)
        return chart | {"height": max(60, min(22 * len(axis.labels), 420))}

    rows = tuple((site, *row) for site, row in zip(sites, values, strict=True))
    note = "Fraction of the difference between the two runs: 0 none, 1 all. Positions across, "
    note += "layers upward; the positions with the largest fractions if there are many."
    return Picture(key, message, draw, Numbers(("site", *names), rows, key), note)
