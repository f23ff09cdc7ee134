"""Similarity of all pairs of sites, spectra, and the size of units."""

import math
from typing import Any, Final

import altair as alt
import numpy as np

from sonde.report._draw import NARROW, OKABE_ITO, WIDE, tip, x_sites
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture

_MAP_SITES: Final = {WIDE: 48, NARROW: 24}
_SPECTRA: Final = 6


def similarity_picture(similarity: dict[str, Any]) -> Picture | None:
    """Return the map of debiased CKA, site by site."""
    sites = similarity["sites"]
    if len(sites) < 2:
        return None
    at = {site: i for i, site in enumerate(sites)}
    axis = Axis.of(sites)

    def draw(width: int) -> Any:
        return _map(similarity, Axis.of(sites, _MAP_SITES[width]), at, width)

    rows = [
        (site, *(similarity["cka"][at[site]][at[other]] for other in axis.sites))
        for site in axis.sites
    ]
    note = "Debiased CKA: 1 is the same geometry, 0 is none in common. Grey: not more than when nothing is shared."
    numbers = Numbers(("site", *axis.sites), tuple(rows), "similarity")
    return Picture("similarity", _map_message(similarity), draw, numbers, note, square=True)


def _cell(matrix: Any, i: int, j: int) -> float | None:
    return matrix[i][j] if isinstance(matrix, list) else matrix


def _map(similarity: dict[str, Any], axis: Axis, at: dict[str, int], width: int) -> Any:
    values = []
    for a in axis.sites:
        for b in axis.sites:
            i, j = at[a], at[b]
            cka, se, null = (_cell(similarity[k], i, j) for k in ("cka", "se", "null"))
            text = tip(a, b, f"CKA {number(cka)}", "" if se is None else f"se {number(se)}")
            text += "" if null is None else f" · null {number(null)}"
            faint = cka is None or cka < (null or 0.0) + 2 * (se or 0.0)
            values.append({"a": axis.names[a], "b": axis.names[b], "v": cka, "f": faint, "t": text})
    side = min(width - 90, 520)
    labels = axis.labels
    x, y = _map_axis("a", alt.X, axis, side), _map_axis("b", alt.Y, axis, side)
    bar = alt.Legend(title="CKA", orient="bottom", gradientLength=min(side, 260), format="~g")
    color = alt.Color(
        "v:Q", scale=alt.Scale(scheme="cividis", domain=[0, 1], clamp=True), legend=bar
    )
    seen = alt.Chart(alt.Data(values=[v for v in values if not v["f"]]))
    layers = [seen.mark_rect().encode(x=x, y=y, color=color, description="t:N")]
    faint = [v for v in values if v["f"]]
    if faint:
        grey = alt.Chart(alt.Data(values=faint)).mark_rect(color="var(--off)")
        layers.append(grey.encode(x=x, y=y, description="t:N"))
    return alt.layer(*layers).properties(width=side, height=side if len(labels) > 3 else side // 2)


def _map_axis(field: str, kind: Any, axis: Axis, side: int) -> Any:
    longest = max(map(len, axis.labels))
    step = max(1, math.ceil(len(axis.labels) * 20 / side))
    angle = 0 if kind is alt.Y or longest <= 2 else -50
    look = alt.Axis(
        values=axis.labels[::step], labelAngle=angle, title=axis.title or None, ticks=False
    )
    return kind(f"{field}:N", sort=axis.labels, axis=look, scale=alt.Scale(paddingInner=0.04))


def _map_message(similarity: dict[str, Any]) -> str:
    sites, cka = similarity["sites"], similarity["cka"]
    steps = [(cka[i][i + 1], i) for i in range(len(sites) - 1) if cka[i][i + 1] is not None]
    if not steps:
        return "Similarity of the sites is not defined"
    value, i = min(steps)
    text = "Largest change between neighbours: "
    text += f"{shown(sites[i], 60)} to {shown(sites[i + 1], 60)} (CKA {number(value)})"
    ends = cka[0][-1]
    return text if ends is None or len(sites) == 2 else f"{text}; first to last {number(ends)}"


def spectrum_picture(report: dict[str, Any]) -> Picture | None:
    """Return the spectra of at most six sites on logarithmic axes."""
    rows = [row for row in report["sites"] if "spectrum" in row["curves"]]
    if not rows:
        return None
    count = min(_SPECTRA, len(rows))
    kept = [rows[round(i * (len(rows) - 1) / max(count - 1, 1))] for i in range(count)]
    axis = Axis.of([row["site"] for row in kept])
    lines, table, needed = [], [], []
    for row in kept:
        curve = row["curves"]["spectrum"]
        rank = _rank(curve, row["dim"])
        needed.append((rank, row))
        text = tip(
            row["site"],
            f"90 % of the variance in about {plural(rank, 'direction')} of {row['dim']}",
        )
        for x, y in zip(curve["x"], curve["y"], strict=True):
            table.append((row["site"], x, y))
            if y is not None and y > 0 and x > 0:
                lines.append({"x": x, "y": y, "k": axis.names[row["site"]], "t": text})
    white = _white(kept[0]["curves"]["spectrum"])

    def draw(width: int) -> Any:
        return _spectra(lines, white, axis, width)

    if not lines:
        return None
    rank, row = min(needed, key=lambda pair: pair[0])
    rank2, row2 = max(needed, key=lambda pair: pair[0])
    message = f"90 % of the variance lies in about {rank:,} of {row['dim']:,} directions at {shown(row['site'], 60)}"
    message += f", {rank2:,} at {shown(row2['site'], 60)}" if row2 is not row else ""
    note = "Share of the variance along each direction, largest first; dashed: white noise of as many rows."
    return Picture(
        "spectrum",
        message,
        draw,
        Numbers(("site", "index", "share"), tuple(table), "spectrum"),
        note if white else note.split(";")[0] + ".",
    )


def _rank(curve: dict[str, Any], dim: int) -> int:
    known = [
        (x, y)
        for x, y in zip(curve["x"], curve["y"], strict=True)
        if y is not None and y > 0 and x > 0
    ]
    if not known:
        return 0
    index = np.arange(1, dim + 1)
    x, y = np.log([k[0] for k in known]), np.log([k[1] for k in known])
    height = np.exp(np.interp(np.log(index), x, y))
    height[index > known[-1][0]] = 0.0
    total = np.cumsum(height)
    return int(np.searchsorted(total, 0.9 * total[-1])) + 1


def _white(curve: dict[str, Any]) -> list[dict[str, Any]]:
    null = curve.get("null") or []
    return [{"x": x, "y": y} for x, y in zip(curve["x"], null, strict=False) if y and x > 0]


def _spectra(
    lines: list[dict[str, Any]], white: list[dict[str, Any]], axis: Axis, width: int
) -> Any:
    x = alt.X(
        "x:Q",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(title="direction", format="~s", tickCount=4),
    )
    look = alt.Axis(title=None, format="~%", tickCount=5, minExtent=58, maxExtent=58)
    y = alt.Y("y:Q", scale=alt.Scale(type="log"), axis=look)
    color = alt.Color(
        "k:N",
        sort=axis.labels,
        scale=alt.Scale(domain=axis.labels, range=list(OKABE_ITO[: len(axis.labels)])),
    )
    base = alt.Chart(alt.Data(values=lines)).mark_line(strokeWidth=2.5, clip=True)
    layers = [base.encode(x=x, y=y, color=color, description="t:N")]
    if white:
        noise = alt.Chart(alt.Data(values=white)).mark_line(
            strokeDash=[5, 4], color="var(--soft)", aria=False, clip=True
        )
        layers.append(noise.encode(x="x:Q", y="y:Q"))
    return alt.layer(*layers).properties(width=width - 74, height=260)


def units_picture(units: list[dict[str, Any]]) -> Picture | None:
    """Return bands of the units' root mean square at each site, with the named units as dots."""
    rows = [row for row in units if any(b for b in row["bands"])]
    if not rows:
        return None
    axis = Axis.of([row["site"] for row in rows])
    floor = min(b for row in rows for b in row["bands"] if b) / 1.5
    bands, dots, table = [], [], []
    for row in rows:
        if row["site"] not in axis.names:
            continue
        name = axis.names[row["site"]]
        low = [max(b or 0.0, floor) for b in row["bands"]]
        text = tip(
            row["site"], f"median {number(row['bands'][2])}", f"largest {number(row['bands'][4])}"
        )
        text += f" · {plural(row.get('n_dead') or 0, 'dead unit')}"
        bands.append({"s": name, **{f"b{i}": v for i, v in enumerate(low)}, "t": text})
        table.append((row["site"], *row["bands"], row.get("n_dead"), row.get("n_constant")))
        for unit in row["named"]:
            if unit["rms"]:
                text = tip(
                    row["site"],
                    f"unit {unit['unit']}",
                    f"rms {number(unit['rms'])}",
                    f"largest {number(unit['max'])}",
                    f"zero on {share(unit['zero_share'])} of rows",
                )
                dots.append({"s": name, "v": max(unit["rms"], floor), "t": text})

    def draw(width: int) -> Any:
        return _bands(bands, dots, axis, width)

    columns = ("site", "smallest", "25 %", "median", "75 %", "largest", "dead", "constant")
    note = "Root mean square of each unit: all units, the middle half, the median. Dots: units that a finding names. Zero is drawn at the lower edge."
    return Picture(
        "units", _units_message(rows), draw, Numbers(columns, tuple(table), "units"), note
    )


def _units_message(rows: list[dict[str, Any]]) -> str:
    ratios = [
        (row["bands"][4] / row["bands"][2], row)
        for row in rows
        if row["bands"][2] and row["bands"][4]
    ]
    dead = max(rows, key=lambda row: row.get("n_dead") or 0)
    text = "Size of the units by depth"
    if ratios:
        ratio, row = max(ratios, key=lambda pair: pair[0])
        text = f"The largest unit is at most {number(ratio)} times the median one ({shown(row['site'], 60)})"
    if dead.get("n_dead"):
        text += f"; most dead units: {dead['n_dead']:,} at {shown(dead['site'], 60)}"
    return text


def _bands(bands: list[dict[str, Any]], dots: list[dict[str, Any]], axis: Axis, width: int) -> Any:
    x = x_sites(axis.labels, width, axis.title)
    look = alt.Axis(title=None, format="~g", tickCount=5, minExtent=58, maxExtent=58)
    y = alt.Y("b2:Q", scale=alt.Scale(type="log"), axis=look)
    base = alt.Chart(alt.Data(values=bands))
    layers = [
        base.mark_area(opacity=0.16, color="var(--c1)", aria=False).encode(
            x=x, y="b0:Q", y2="b4:Q"
        ),
        base.mark_area(opacity=0.3, color="var(--c1)", aria=False).encode(x=x, y="b1:Q", y2="b3:Q"),
        base.mark_line(color="var(--c1)", aria=False).encode(x=x, y=y),
        base.mark_point(color="var(--c1)", filled=True, size=46, opacity=1).encode(
            x=x, y=y, description="t:N"
        ),
    ]
    if dots:
        named = alt.Chart(alt.Data(values=dots)).mark_point(
            shape="diamond", filled=True, size=90, opacity=1, color="var(--c2)"
        )
        layers.append(named.encode(x=x, y="v:Q", description="t:N"))
    return alt.layer(*layers).properties(width=width - 74, height=240)
