"""Traces of pairs of texts as text for a terminal of 80 columns."""

from textwrap import wrap
from typing import Any, Final

from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Axis

COLUMNS: Final = 80
MOST: Final = 12
"""Positions, sites and edges that are printed."""
FAITHFUL: Final = 0.8
LEGEND: Final = """share of the difference that the state of one run brings into the other;
0 nothing, 1 all of it; the positions with the largest shares are shown"""


def trace_verdict(found: dict[str, Any]) -> str:
    """Return in a sentence where the answers part.

    Parameters
    ----------
    found : dict
        JSON of a trace, ``sonde-trace/1``.
    """
    live = [one for one in found["pairs"] if not one["dropped"]]
    if not live:
        return "The texts get the same answer: there is nothing to trace."
    if len(live) > 1:
        known = [one["circuit"]["faithfulness"] for one in live if one["circuit"]]
        part = f"{plural(len(live), 'pair')} traced"
        if not known:
            return f"{part}."
        return f"{part}; circuits keep {share(sum(known) / len(known), 2)} of the difference."
    one = live[0]
    said = f"{_top(one, found['sites'])} carries most"
    circuit = one["circuit"]
    if circuit is None:
        return f"{said}; no circuit."
    ways = f"{circuit['n_edges']} of {plural(circuit['n_all'], 'edge')}"
    return f"{said}; {ways} keep {share(circuit['faithfulness'], 2)} of the difference."


def _top(one: dict[str, Any], sites: list[str]) -> str:
    """Return the state in front of the last position that carries most, or the first that does."""
    best = next((b for b in one["best"] if b["position"] < last_position(one)), one["best"][0])
    token = f" ({place(one, best['position'])})" if one["tokens"] else ""
    site = Axis.of(sites).say(best["site"])
    return f"Before the last position, {site} at position {best['position']}{token}"


def last_position(one: dict[str, Any]) -> int:
    """Return the position whose answer is looked at."""
    return len(one["patched"][0]) - 1


def place(one: dict[str, Any], i: int) -> str:
    """Return a position as people read it."""
    if not one["tokens"]:
        return str(i)
    clean, corrupt = one["tokens"][i], one["corrupt_tokens"][i]
    said = repr(shown(clean, 16))
    return said if clean == corrupt else f"{said} for {shown(corrupt, 16)!r}"


def trace_to_text(found: dict[str, Any]) -> str:
    """Return the verdict, and of each pair the map, the estimates and the circuit."""
    lines = [*wrap(trace_verdict(found), COLUMNS), ""]
    for number_, one in enumerate(found["pairs"][:MOST]):
        if found["n"] > 1:
            lines += [f"pair {number_}", ""]
        lines += [*_pair(one, found["sites"]), ""]
    if found["n"] > MOST:
        lines.append(f"{plural(found['n'] - MOST, 'more pair')} not shown")
    return "\n".join(lines).rstrip()


def _pair(one: dict[str, Any], sites: list[str]) -> list[str]:
    ends = f"{one['objective']}: {number(one['clean'])} clean, {number(one['corrupt'])} corrupted"
    lines = wrap(ends, COLUMNS)
    if one["dropped"]:
        return [*lines, "no difference: nothing to trace"]
    lines += ["", *_map(one, sites), "", *LEGEND.splitlines(), ""]
    lines += wrap(f"estimates by gradients miss {number(one['gap'])} of the difference", COLUMNS)
    return [*lines, *_circuit(one)]


def _map(one: dict[str, Any], sites: list[str]) -> list[str]:
    rows = one["patched"]
    size = [max(abs(row[i] or 0.0) for row in rows) for i in range(len(rows[0]))]
    kept = sorted(sorted(range(len(size)), key=lambda i: -size[i])[:MOST])
    axis = Axis.of(sites, MOST)
    lines = [f"{'':<16}" + "".join(f"{i:>5}" for i in kept)]
    for site, row in reversed(list(zip(sites, rows, strict=True))):
        if site in axis.names:
            cells = "".join(f"{_cell(row[i]):>5}" for i in kept)
            lines.append(f"{axis.names[site][-15:]:<16}{cells}")
    if one["tokens"]:
        lines += ["", *(f"{i:>5}  {place(one, i)}" for i in kept)]
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")


def _circuit(one: dict[str, Any]) -> list[str]:
    circuit = one["circuit"]
    if circuit is None:
        return wrap(f"no circuit: {one['no_circuit']}", COLUMNS)
    said = f"circuit: {circuit['n_edges']} of {plural(circuit['n_all'], 'edge')} keep "
    said += f"{share(circuit['faithfulness'], 2)} of the difference "
    said += f"({share(circuit['random'], 2)} for as many at random); "
    said += f"without them {share(circuit['without'], 2)} is left"
    lines = wrap(said, COLUMNS)
    for edge in circuit["edges"][:MOST]:
        lines.append(f"  {number(edge['needed']):>6}  {edge_name(edge)}")
    if circuit["edges"]:
        lines.append("  (what the circuit loses without an edge)")
    return lines


def edge_name(edge: dict[str, Any]) -> str:
    """Return an edge as people read it."""
    writer = edge["writer"].removesuffix(":out")
    return f"{shown(writer, 60)} -> {shown(edge['reader'].removesuffix(':in'), 60)}"
