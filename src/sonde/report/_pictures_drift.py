"""Which comparisons moved at which site, how far means and angles went, and the units that did."""

from typing import Any, Final

import altair as alt

from sonde.report._axes import NARROW, Rows, dots, layer, line, sized, tip, x_sites, y_axis
from sonde.report._format import Real, number, p_value, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.drift_terminal import QUESTIONS, UNMOVED

_STEPS: Final = ("moved clearly", "moved", "not moved", "not tested")
_LABELS: Final = 136
_COLORS: Final = ("var(--c2)", "var(--c2)", "var(--grid)", "var(--paper)")
_SHAPES: Final = ("square", "diamond", "circle", "cross")


def question(method: str) -> str:
    """Return what a method asks, with its parameters where there are several of it."""
    word, bracket, rest = method.partition("(")
    return shown(QUESTIONS.get(word, word) + (f" {bracket}{rest}" if bracket else ""), 40)


def grid_picture(found: dict[str, Any]) -> Picture | None:
    """Return one mark for each site and method: whether it moved."""
    cells = found["comparisons"]
    if not cells:
        return None
    axis = Axis.of([s["site"] for s in found["sites"]])
    rows = [_cell(c, axis) for c in cells if c["site"] in axis.names]
    methods = list(dict.fromkeys(row["m"] for row in rows))
    moved = sum(bool(c["moved"]) for c in cells)
    tested = sum(c["p"] is not None for c in cells)
    message = f"{moved} of {plural(tested, 'comparison')} moved at level {found['level']:g}"
    columns = ("site", "method", "value", "no change", "p", "adjusted", "moved")
    table = tuple(
        (c["site"], c["method"], c["value"], c["null"], c["p"], c["adjusted"], _word(c["moved"]))
        for c in cells
    )

    def draw(width: int) -> Any:
        return _grid(rows, methods, axis, width)

    note = "A line for each question: anything is any difference of the distributions, linear "
    note += (
        "classifier whether one tells the sides apart, energy outside how much leaves the leading "
    )
    note += (
        "directions of the first. p-values are corrected for the number of comparisons; clearly: "
    )
    note += "at most 0.001."
    return Picture("grid", message, draw, Numbers(columns, table, "comparisons"), note)


def _word(moved: bool | None) -> str:
    return "not tested" if moved is None else "yes" if moved else "no"


def _cell(c: dict[str, Any], axis: Axis) -> dict[str, Any]:
    kind = 3 if c["p"] is None else 2 if not c["moved"] else 0 if c["adjusted"] <= 0.001 else 1
    size = f"value {number(c['value'])}"
    text = tip(c["site"], c["method"], size, f"adjusted p {p_value(c['adjusted'])}")
    return {
        "s": axis.names[c["site"]],
        "m": question(c["method"]),
        "k": _STEPS[kind],
        "t": text,
    }


def _grid(rows: Rows, methods: list[str], axis: Axis, width: int) -> Any:
    y = alt.Y(
        "m:N",
        sort=methods,
        axis=alt.Axis(title=None, grid=False, minExtent=_LABELS, maxExtent=_LABELS),
    )
    known = [step for step in _STEPS if any(row["k"] == step for row in rows)]
    at = [_STEPS.index(step) for step in known]
    legend = alt.Legend(columns=1 if width <= NARROW else len(known))
    scale = alt.Scale(domain=known, range=[_COLORS[i] for i in at])
    color = alt.Color("k:N", scale=scale, sort=known, legend=legend)
    shape = alt.Shape("k:N", scale=alt.Scale(domain=known, range=[_SHAPES[i] for i in at]))
    marks = layer(rows).mark_point(filled=True, size=150, opacity=1, stroke="var(--line)")
    chart = marks.encode(
        x=x_sites(axis.labels, width - _LABELS, axis.title),
        y=y,
        color=color,
        shape=shape,
        description=alt.Description("t:N"),
    )
    return chart.properties(width=width - _LABELS - 16, height=max(60, 30 * len(methods)))


def mean_picture(found: dict[str, Any]) -> Picture | None:
    """Return how far each site's mean went, in standard deviations along its own direction."""
    sites = [s for s in found["sites"] if s["direction"] and s["direction"]["deviations"]]
    if not sites:
        return None
    axis = Axis.of([s["site"] for s in sites])
    rows = []
    for s in (s for s in sites if s["site"] in axis.names):
        far, noise = s["direction"]["deviations"], s["direction"]["beyond_noise"]
        text = tip(s["site"], f"{number(far)} standard deviations", f"{share(noise, 2)} no noise")
        rows.append({"s": axis.names[s["site"]], "v": far, "t": text})
    message = UNMOVED.removesuffix(".")
    if found["direction"] is not None:
        best = next(s for s in sites if s["site"] == found["direction"]["site"])
        far = number(best["direction"]["deviations"])
        message = f"The mean moved most at {axis.say(best['site'])}: {far} standard deviations"
    table = tuple(
        (
            s["site"],
            s["direction"]["length"],
            s["direction"]["deviations"],
            s["direction"]["beyond_noise"],
            ", ".join(f"{unit} ({weight:+.2f})" for unit, weight in s["direction"]["units"]),
        )
        for s in sites
    )
    columns = ("site", "length", "standard deviations", "beyond noise", "units")

    def draw(width: int) -> Any:
        x = x_sites(axis.labels, width, axis.title)
        return sized(line(rows, x, alt.Y("v:Q", axis=y_axis())), width, 220)

    note = "Along the direction in which the mean went. A small move may be noise: see the table."
    return Picture("mean", message, draw, Numbers(columns, table, "means"), note)


def angles_picture(found: dict[str, Any]) -> Picture | None:
    """Return the principal angles at each site, each as a dot."""
    sites = [s for s in found["sites"] if s["angles"]]
    if not sites:
        return None
    axis = Axis.of([s["site"] for s in sites])
    sites = [s for s in sites if s["site"] in axis.names]
    p = {c["site"]: c["p"] for c in found["comparisons"] if c["method"] == "subspace_shift"}
    rows = [
        {
            "s": axis.names[s["site"]],
            "v": angle,
            "t": tip(s["site"], f"{number(angle)} degrees", f"p = {number(p.get(s['site']), 2)}"),
        }
        for s in sites
        for angle in s["angles"]
    ]
    best = max(sites, key=lambda s: max(s["angles"]))
    message = f"Leading directions turned by up to {number(max(best['angles']), 2)} degrees, at "
    message += axis.say(best["site"])
    table = tuple(
        (s["site"], max(s["angles"]), min(s["angles"]), p.get(s["site"]), _units(s["axis"]))
        for s in sites
    )
    top = min(90.0, max(1.0, 1.2 * max(best["angles"])))
    columns = ("site", "largest angle", "smallest angle", "p", "leaves most along units")

    def draw(width: int) -> Any:
        x = x_sites(axis.labels, width, axis.title)
        y = alt.Y("v:Q", axis=y_axis(), scale=alt.Scale(domain=[0, top], nice=False))
        return sized([dots(rows, x, y, color="var(--c1)", opacity=0.75)], width, 220)

    note = "Angles between the leading directions of both sides. Directions of nearly equal "
    note += "variance turn without any change: the p-value knows."
    return Picture("angles", message, draw, Numbers(columns, table, "angles"), note)


def _units(axis: list[list[Real]] | None) -> str:
    return ", ".join(f"{int(unit)} ({weight:+.2f})" for unit, weight in axis or ())


def units_picture(found: dict[str, Any]) -> Picture | None:
    """Return the units that moved farthest at the site where units moved most clearly.

    Units of which the histogram cannot tell how far stand in the table alone.
    """
    sites = [s for s in found["sites"] if any(u["moved_by"] is not None for u in s["units"])]
    if not sites:
        return None
    site = max(sites, key=lambda s: (s["n_units_moved"] or 0, s["units"][0]["effect"] or 0.0))
    rows = [
        {
            "s": str(u["unit"]),
            "v": u["moved_by"],
            "k": "moved" if u["moved"] else "not moved",
            "t": tip(
                f"unit {u['unit']}",
                f"{number(u['moved_by'])} standard deviations",
                f"effect {number(u['effect'])}",
                f"adjusted p {p_value(u['adjusted'])}",
            ),
        }
        for u in site["units"]
        if u["moved_by"] is not None
    ]
    name = shown(site["site"].removesuffix(":out"), 60)
    count = site["n_units_moved"] or 0
    message = f"{count} of {plural(site['n_units'], 'unit')} moved at {name}"
    table = tuple(
        (s["site"], u["unit"], u["effect"], u["moved_by"], u["p"], u["adjusted"])
        for s in found["sites"]
        for u in s["units"]
    )
    columns = ("site", "unit", "effect", "moved by", "p", "adjusted")

    def draw(width: int) -> Any:
        return _bars(rows, width)

    note = "Wasserstein distance of each unit's values in pooled standard deviations; p-values are "
    note += "corrected for the units of the site, and the clearest units stand first."
    return Picture("units", message, draw, Numbers(columns, table, "units"), note)


def _bars(rows: Rows, width: int) -> Any:
    names = [row["s"] for row in rows]
    colors = {"moved": "var(--c2)", "not moved": "var(--c1)"}
    known = [name for name in colors if any(row["k"] == name for row in rows)]
    scale = alt.Scale(domain=known, range=[colors[name] for name in known])
    bars = layer(rows).mark_bar(opacity=0.85)
    chart = bars.encode(
        x=x_sites(names, width, "unit"),
        y=alt.Y("v:Q", axis=y_axis()),
        color=alt.Color("k:N", scale=scale),
        description=alt.Description("t:N"),
    )
    return sized([chart], width, 220)
