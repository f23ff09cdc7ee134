"""Similarity of all pairs of sites, and the spectra of a few."""

import math
from itertools import pairwise
from typing import Any, Final

import altair as alt
import numpy as np

from sonde.report._axes import (
    MARGIN,
    NARROW,
    OKABE_ITO,
    WIDE,
    Rows,
    layer,
    sized,
    tip,
    y_log,
)
from sonde.report._format import Real, number, plural
from sonde.report._picture import Axis, Numbers, Picture

_MAP_SITES: Final = {WIDE: 48, NARROW: 24}
_SPECTRA: Final = 6
_CKA = "Debiased CKA: 1 is the same geometry, 0 is nothing in common."
_FAINT = " Empty: no more than two sites that share nothing."
_SPECTRUM = "Share of the variance along each direction, largest first; a line for each site."
_WHITE = " Dashed: white noise of as many rows."


def similarity_picture(similarity: dict[str, Any]) -> Picture | None:
    """Return the map of debiased CKA, site by site."""
    sites, cka = similarity["sites"], similarity["cka"]
    if len(sites) < 2:
        return None
    at = {site: i for i, site in enumerate(sites)}
    axis = Axis.of(sites, _MAP_SITES[WIDE])

    def draw(width: int) -> Any:
        return _map(similarity, Axis.of(sites, _MAP_SITES[width]), at, width)

    rows = tuple((a, *(cka[at[a]][at[b]] for b in axis.sites)) for a in axis.sites)
    numbers = Numbers(("site", *axis.sites), rows, "similarity")
    faint = any(_cell(similarity, axis, at, a, b)["f"] for a in axis.sites for b in axis.sites)
    note = _CKA + (_FAINT if faint else "")
    return Picture("similarity", _map_message(similarity), draw, numbers, note, square=True)


def _entry(matrix: Any, i: int, j: int) -> Real | None:
    return matrix[i][j] if isinstance(matrix, list) else matrix


def _cell(
    similarity: dict[str, Any], axis: Axis, at: dict[str, int], a: str, b: str
) -> dict[str, Any]:
    cka, se, null = (_entry(similarity[k], at[a], at[b]) for k in ("cka", "se", "null"))
    said = [f"{name} {number(v)}" for name, v in (("se", se), ("null", null)) if v is not None]
    faint = cka is None or cka < (null or 0.0) + 2 * (se or 0.0)
    text = tip(a, b, f"CKA {number(cka)}", *said)
    return {"a": axis.names[a], "b": axis.names[b], "v": cka, "f": faint, "t": text}


def _map(similarity: dict[str, Any], axis: Axis, at: dict[str, int], width: int) -> Any:
    cells = [_cell(similarity, axis, at, a, b) for a in axis.sites for b in axis.sites]
    side = min(width - MARGIN, 500)
    x, y = _map_axis("a", alt.X, axis, side), _map_axis("b", alt.Y, axis, side)
    bar = alt.Legend(title="CKA", orient="bottom", gradientLength=min(side, 240), format=".1f")
    color = alt.Color(
        "v:Q", scale=alt.Scale(scheme="cividis", domain=[0, 1], clamp=True), legend=bar
    )
    said = alt.Description("t:N")
    shown = [cell for cell in cells if not cell["f"]]
    layers = [layer(shown).mark_rect().encode(x=x, y=y, color=color, description=said)]
    faint = [cell for cell in cells if cell["f"]]
    if faint:
        empty = layer(faint).mark_rect(color="var(--paper)", stroke="var(--line)")
        layers.append(empty.encode(x=x, y=y, description=said))
    # A page draws letters wider than the renderer that left room for the names of lines.
    return alt.layer(*layers).properties(width=side, height=side, padding={"left": 20, "right": 5})


def _map_axis(field: str, kind: Any, axis: Axis, side: int) -> Any:
    labels = axis.labels
    step = max(1, math.ceil(len(labels) * 22 / side))
    angle = 0 if kind is alt.Y or max(map(len, labels)) <= 2 else -50
    title = axis.title if kind is alt.X and axis.title else None
    look = alt.Axis(values=labels[::step], labelAngle=angle, title=title, ticks=False, domain=False)
    return kind(f"{field}:N", sort=labels, axis=look, scale=alt.Scale(paddingInner=0.04))


def _map_message(similarity: dict[str, Any]) -> str:
    sites, cka = similarity["sites"], similarity["cka"]
    axis = Axis.of(sites, len(sites))
    steps = [(cka[i][j], a, b) for (i, a), (j, b) in pairwise(enumerate(sites))]
    known = [step for step in steps if step[0] is not None]
    if not known:
        return "The similarity of neighbouring sites is not defined"
    value, a, b = min(known)
    text = "Largest change between neighbours: "
    text += f"{axis.say(a)} to {axis.say(b)} (CKA {number(value)})"
    ends = cka[0][-1]
    return text if ends is None or len(sites) == 2 else f"{text}; first to last {number(ends)}"


def spectrum_picture(report: dict[str, Any]) -> Picture | None:
    """Return the spectra of at most six sites on logarithmic axes."""
    rows = [row for row in report["sites"] if "spectrum" in row["curves"]]
    count = min(_SPECTRA, len(rows))
    kept = [rows[round(i * (len(rows) - 1) / max(count - 1, 1))] for i in range(count)]
    axis = Axis.of([row["site"] for row in kept])
    lines = [point for row in kept for point in _spectrum(row, axis)]
    if not lines:
        return None
    white = _white(kept[0]["curves"]["spectrum"])
    table = tuple(
        (row["site"], x, y)
        for row in kept
        for x, y in zip(row["curves"]["spectrum"]["x"], row["curves"]["spectrum"]["y"], strict=True)
    )

    def draw(width: int) -> Any:
        return _spectra(lines, white, axis, width)

    ranks = sorted((rank_90(row["curves"]["spectrum"], row["dim"]), row["site"]) for row in kept)
    (low, a), (high, b) = ranks[0], ranks[-1]
    message = f"90 % of the variance lies in about {plural(low, 'direction')} at {axis.say(a)}"
    message += f", in {high:,} at {axis.say(b)}" if a != b else ""
    numbers = Numbers(("site", "index", "share"), table, "spectrum")
    return Picture("spectrum", message, draw, numbers, _SPECTRUM + (_WHITE if white else ""))


def _spectrum(row: dict[str, Any], axis: Axis) -> Rows:
    curve, name = row["curves"]["spectrum"], axis.names[row["site"]]
    rank = plural(rank_90(curve, row["dim"]), "direction")
    text = tip(row["site"], f"90 % of the variance in about {rank} of {row['dim']:,}")
    pairs = zip(curve["x"], curve["y"], strict=True)
    return [{"x": x, "y": y, "k": name, "t": text} for x, y in pairs if y is not None and y > 0 < x]


def rank_90(curve: dict[str, Any], dim: int) -> int:
    """Return how many directions hold 90 % of the variance, from a thinned spectrum.

    Examples
    --------
    >>> rank_90({"x": [1, 10], "y": [0.1, 0.1]}, 10)
    9
    """
    pairs = zip(curve["x"], curve["y"], strict=True)
    known = [(x, y) for x, y in pairs if y is not None and y > 0 < x]
    if not known:
        return 0
    x, y = np.log(np.array(known)).T
    index = np.arange(1, dim + 1)
    height = np.where(index <= known[-1][0], np.exp(np.interp(np.log(index), x, y)), 0.0)
    total = np.cumsum(height)
    return int(np.searchsorted(total, 0.9 * total[-1] * (1 - 1e-12))) + 1


def _white(curve: dict[str, Any]) -> Rows:
    pairs = zip(curve["x"], curve.get("null") or [], strict=False)
    return [{"x": x, "y": y} for x, y in pairs if y and x > 0]


def _spectra(lines: Rows, white: Rows, axis: Axis, width: int) -> Any:
    look = alt.Axis(title="direction (log scale)", format=",.3~r", values=[1, 10, 100, 1000, 10000])
    x = alt.X("x:Q", scale=alt.Scale(type="log", nice=False), axis=look)
    heights = [point["y"] for point in lines]
    top = max(heights)
    y = y_log("y", max(min(heights), top * 1e-6), top, percent=True)
    scale = alt.Scale(domain=axis.labels, range=list(OKABE_ITO[: len(axis.labels)]))
    color = alt.Color("k:N", sort=axis.labels, scale=scale)
    path = layer(lines).mark_line(strokeWidth=2.5, clip=True)
    layers = [path.encode(x=x, y=y, color=color, description=alt.Description("t:N"))]
    if white:
        look = {"strokeDash": [5, 4], "color": "var(--soft)", "aria": False, "clip": True}
        layers.append(layer(white).mark_line(**look).encode(x=x, y=y))
    return sized(layers, width, 260)
