"""The small figures beside a finding: value against threshold, and which sites are meant."""

import math
from typing import Any, Final

from sonde.report._format import Real, p_text, plural, quantity, words
from sonde.report._markup import Markup, el, join
from sonde.report._select import drawn

_WIDTH: Final = 280
_LEFT, _RIGHT = 8, 272


def bullet(figure: dict[str, Any], level: str) -> Markup:
    """Return a small line with marks at a figure's value, interval, null and threshold."""
    value, limit = figure["value"], figure["threshold"]
    if value is None:
        return Markup("")
    place = _axis(
        [v for v in (value, limit, figure["low"], figure["high"], figure["null"]) if v is not None]
    )
    parts = [el("line", x1=_LEFT, x2=_RIGHT, y1=30, y2=30, cls="axis")]
    if limit is not None:
        parts.append(_threshold(place(limit), figure))
    if figure["null"] is not None:
        x = place(figure["null"])
        parts.append(el("line", x1=x, x2=x, y1=24, y2=36, cls="null"))
    if figure["low"] is not None and figure["high"] is not None:
        low, high = place(figure["low"]), place(figure["high"])
        parts.append(el("line", x1=low, x2=high, y1=30, y2=30, cls=f"interval {level}"))
    x = place(value)
    parts.append(el("circle", cx=x, cy=30, r=6, cls=f"dot {level}"))
    label = quantity(value, figure["unit"])
    parts.append(_label(x, 16, label, "value"))
    said = f"{words(figure['name'])}: {label}"
    if limit is not None:
        said += f", limit {quantity(limit, figure['unit'])}"
    svg = el("svg", *parts, cls="bullet", viewBox=f"0 0 {_WIDTH} 60", role="img", aria_label=said)
    return el("figure", svg, el("figcaption", _caption(figure)), cls="small")


def _caption(figure: dict[str, Any]) -> str:
    rows = figure["n_groups"] or figure["n_rows"]  # 0: not counted in groups, or in rows
    kind = "group" if figure["n_groups"] not in (None, 0, figure["n_rows"]) else "row"
    parts = [words(figure["name"])]
    if figure["null"] is not None:
        parts.append(f"nothing to see: {quantity(figure['null'], figure['unit'])}")
    if figure["p"] is not None:
        parts.append(f"p {p_text(figure['p'])}")
    if rows:
        parts.append(plural(rows, kind))
    return " · ".join(parts)


def _threshold(x: Real, figure: dict[str, Any]) -> Markup:
    line = el("line", x1=x, x2=x, y1=20, y2=40, cls="limit")
    return join(
        line, _label(x, 53, f"limit {quantity(figure['threshold'], figure['unit'])}", "limit")
    )


def _label(x: Real, y: Real, label: str, cls: str) -> Markup:
    half = 4 * len(label)
    anchor = "start" if x < half else "end" if x > _WIDTH - half else "middle"
    x = {"start": max(x - 6, 0), "end": min(x + 6, _WIDTH), "middle": x}[anchor]
    return el("text", label, x=round(x, 1), y=y, text_anchor=anchor, cls=cls)


def _axis(values: list[Real]) -> Any:
    low, high = min(values), max(values)
    if low > 0 and high / low > 12:
        low, high = math.log(low / 1.6), math.log(high * 1.6)
        return lambda v: _place(math.log(v), low, high)
    low, high = min(low, 0.0), max(high, 0.0)
    edge = 0.08 * (high - low or 1.0)
    low, high = low - (edge if low < 0 else 0), high + edge
    return lambda v: _place(v, low, high)


def _place(v: Real, low: Real, high: Real) -> Real:
    return round(_LEFT + (v - low) / (high - low) * (_RIGHT - _LEFT), 1)


def strip(sites: list[str], marked: list[str], level: str) -> Markup:
    """Return a row of cells for the sites in order of execution; marked sites are filled."""
    shown_sites = drawn(sites, 60)
    if len(shown_sites) < 2 or not marked:
        return Markup("")
    step = (_WIDTH - 2) / len(shown_sites)
    hit = _hit(sites, shown_sites, set(marked))
    cells = [
        el(
            "rect",
            x=round(1 + i * step, 1),
            y=2,
            width=round(max(step - 2, 1.5), 1),
            height=12,
            rx=2,
            cls=level if site in hit else "off",
        )
        for i, site in enumerate(shown_sites)
    ]
    said = f"{len(marked)} of {plural(len(sites), 'site')}"
    svg = el("svg", *cells, cls="strip", viewBox=f"0 0 {_WIDTH} 16", role="img", aria_label=said)
    return el("figure", svg, el("figcaption", f"{said}, first to last"), cls="small")


def _hit(sites: list[str], kept: list[str], marked: set[str]) -> set[str]:
    """Return the kept sites that are marked, or that come next after a marked site."""
    chosen, hit = set(kept), set()
    waiting = False
    for site in sites:
        waiting = waiting or site in marked
        if site in chosen:
            if waiting:
                hit.add(site)
            waiting = False
    return hit | ({kept[-1]} if waiting else set())
