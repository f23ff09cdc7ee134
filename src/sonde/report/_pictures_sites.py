"""Pictures of the similarity of all pairs of sites, and of the spectra of a few sites."""

from itertools import pairwise
from typing import Any, Final

import numpy as np

from sonde.core.chart import Chart, ChartAxis, curves, matrix, overlaid
from sonde.report._fit import NARROW, WIDE, Rows, tip
from sonde.report._format import Real, number, plural
from sonde.report._picture import Axis, Numbers, Picture

_MAP_SITES: Final = {WIDE: 48, NARROW: 24}
_SPECTRA: Final = 6
_CKA = "Debiased CKA: 1 is the same geometry, 0 is unrelated geometry."
_FAINT = " Empty cells: no more similar than two unrelated sites."
_SPECTRUM = "Fraction of the variance along each direction, largest first; a line for each site."
_WHITE = " Dashed: white noise with the same number of rows."


def similarity_picture(similarity: dict[str, Any]) -> Picture | None:
    """Return the matrix of debiased CKA between sites."""
    sites, cka = similarity["sites"], similarity["cka"]
    if len(sites) < 2:
        return None
    at = {site: i for i, site in enumerate(sites)}
    axis = Axis.of(sites, _MAP_SITES[WIDE])

    message = _map_message(similarity)

    def draw(width: int) -> Chart:
        axis = Axis.of(sites, _MAP_SITES[width])
        cells = [_cell(similarity, axis, at, a, b) for a in axis.sites for b in axis.sites]
        down = ChartAxis("b", title="", names=axis.labels)
        return matrix(message, cells, axis.across("a"), down, "CKA", low=0, high=1)

    rows = tuple((a, *(cka[at[a]][at[b]] for b in axis.sites)) for a in axis.sites)
    numbers = Numbers(("site", *axis.sites), rows, "similarity")
    faint = any(_cell(similarity, axis, at, a, b)["f"] for a in axis.sites for b in axis.sites)
    note = _CKA + (_FAINT if faint else "")
    return Picture("similarity", message, draw, numbers, note, square=True)


def _entry(matrix: Any, i: int, j: int) -> Real | None:
    return matrix[i][j] if isinstance(matrix, list) else matrix


def _cell(
    similarity: dict[str, Any], axis: Axis, at: dict[str, int], a: str, b: str
) -> dict[str, Any]:
    cka, se, null = (_entry(similarity[k], at[a], at[b]) for k in ("cka", "se", "null"))
    words = [f"{name} {number(v)}" for name, v in (("se", se), ("null", null)) if v is not None]
    faint = cka is None or cka < (null or 0.0) + 2 * (se or 0.0)
    text = tip(a, b, f"CKA {number(cka)}", *words)
    return {
        "a": axis.names[a],
        "b": axis.names[b],
        "CKA": None if faint else cka,
        "f": faint,
        "tip": text,
    }


def _map_message(similarity: dict[str, Any]) -> str:
    sites, cka = similarity["sites"], similarity["cka"]
    axis = Axis.of(sites, len(sites))
    steps = [(cka[i][j], a, b) for (i, a), (j, b) in pairwise(enumerate(sites))]
    present = [step for step in steps if step[0] is not None]
    if not present:
        return "The similarity of neighbouring sites is not defined"
    value, a, b = min(present)
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

    ranks = sorted((rank_90(row["curves"]["spectrum"], row["dim"]), row["site"]) for row in kept)
    (low, a), (high, b) = ranks[0], ranks[-1]
    message = f"90 % of the variance lies in about {plural(low, 'direction')} at {axis.say(a)}"
    message += f", in {high:,} at {axis.say(b)}" if a != b else ""

    def draw(width: int) -> Chart:
        return _spectra(message, lines, white)

    numbers = Numbers(("site", "index", "share"), table, "spectrum")
    return Picture("spectrum", message, draw, numbers, _SPECTRUM + (_WHITE if white else ""))


def _spectrum(row: dict[str, Any], axis: Axis) -> Rows:
    curve, name = row["curves"]["spectrum"], axis.names[row["site"]]
    rank = plural(rank_90(curve, row["dim"]), "direction")
    text = tip(row["site"], f"90 % of the variance in about {rank} of {row['dim']:,}")
    pairs = zip(curve["x"], curve["y"], strict=True)
    return [
        {"x": x, "y": y, "k": name, "tip": text} for x, y in pairs if y is not None and y > 0 < x
    ]


def rank_90(curve: dict[str, Any], dim: int) -> int:
    """Return how many principal directions hold 90 % of the variance.

    Examples
    --------
    >>> rank_90({"x": [1, 10], "y": [0.1, 0.1]}, 10)
    9
    """
    pairs = zip(curve["x"], curve["y"], strict=True)
    positive = [(x, y) for x, y in pairs if y is not None and y > 0 < x]
    if not positive:
        return 0
    x, y = np.log(np.array(positive)).T
    index = np.arange(1, dim + 1)
    height = np.where(index <= positive[-1][0], np.exp(np.interp(np.log(index), x, y)), 0.0)
    total = np.cumsum(height)
    return int(np.searchsorted(total, 0.9 * total[-1] * (1 - 1e-12))) + 1


def _white(curve: dict[str, Any]) -> Rows:
    pairs = zip(curve["x"], curve.get("null") or [], strict=False)
    return [{"x": x, "y": y} for x, y in pairs if y and x > 0]


def _spectra(message: str, lines: Rows, white: Rows) -> Chart:
    floor = max(point["y"] for point in lines) * 1e-6
    x = ChartAxis("x", title="direction (log scale)", log=True)
    y = ChartAxis("y", title="", log=True, share=True)
    kept = [{**point, "y": max(point["y"], floor)} for point in lines]
    chart = curves(message, kept, x, y, by="k", dots=False, strokeWidth=2.5)
    if not white:
        return chart
    look = {"strokeDash": [5, 4], "color": "var(--soft)", "aria": False}
    low = min(point["y"] for point in kept)
    noise = [point for point in white if point["y"] >= low]
    return overlaid(chart, curves(message, noise, x, y, dots=False, **look))
