"""The map of two models' layers, how alike those of one name are, and what moved."""

import math
from typing import Any, Final

import altair as alt

from sonde.report._axes import MARGIN, NARROW, WIDE, Rows, layer, line, sized, tip, x_sites, y_axis
from sonde.report._format import number
from sonde.report._picture import Axis, Numbers, Picture

_MOST: Final = {WIDE: 48, NARROW: 24}


def map_picture(found: dict[str, Any]) -> Picture:
    """Return the similarity of every layer of the first model to every one of the second."""
    sites, others = found["sites"], found["others"]

    def draw(width: int) -> Any:
        across, up = Axis.of(sites, _MOST[width]), Axis.of(others, _MOST[width])
        return _map(found, across, up, width)

    rows = tuple((a, *found["cka"][i]) for i, a in enumerate(sites))
    numbers = Numbers(("first \\ second", *others), rows, "cka")
    note = "Debiased CKA: 1 is the same geometry, 0 nothing in common. Across the first model, up "
    note += "the second. A bright diagonal: the same layers do the same work."
    return Picture("map", _map_message(found), draw, numbers, note, square=True)


def _map_message(found: dict[str, Any]) -> str:
    sites, others = found["sites"], found["others"]
    at = {name: j for j, name in enumerate(others)}
    best = [
        max(range(len(others)), key=lambda j: -math.inf if row[j] is None else row[j])
        for row in found["cka"]
    ]
    named = [i for i, s in enumerate(sites) if s in at]
    if not named:
        return "How alike the layers of the two models are"
    own = sum(best[i] == at[sites[i]] for i in named)
    return f"{own} of {len(named)} layers are most alike to the layer of their own name"


def _map(found: dict[str, Any], across: Axis, up: Axis, width: int) -> Any:
    at = {name: i for i, name in enumerate(found["sites"])}
    to = {name: j for j, name in enumerate(found["others"])}
    cells = [
        {
            "a": across.names[a],
            "b": up.names[b],
            "v": found["cka"][at[a]][to[b]],
            "t": tip(a, b, f"CKA {number(found['cka'][at[a]][to[b]])}"),
        }
        for a in across.sites
        for b in up.sites
    ]
    side = min(width - MARGIN, 500)
    bar = alt.Legend(title="CKA", orient="bottom", gradientLength=min(side, 240), format=".1f")
    scale = alt.Scale(scheme="cividis", domain=[0, 1], clamp=True)
    marks = (
        layer(cells)
        .mark_rect()
        .encode(
            x=_edge("a", alt.X, across, side),
            y=_edge("b", alt.Y, up, side),
            color=alt.Color("v:Q", scale=scale, legend=bar),
            description=alt.Description("t:N"),
        )
    )
    return marks.properties(width=side, height=side, padding={"left": 20, "right": 5})


def _edge(field: str, kind: Any, axis: Axis, side: int) -> Any:
    labels = axis.labels
    step = max(1, math.ceil(len(labels) * 22 / side))
    angle = 0 if kind is alt.Y or max(map(len, labels)) <= 2 else -50
    look = alt.Axis(
        values=labels[::step], labelAngle=angle, title=axis.title or None, ticks=False, domain=False
    )
    order = labels if kind is alt.X else labels[::-1]
    return kind(f"{field}:N", sort=order, axis=look, scale=alt.Scale(paddingInner=0.04))


def alike_picture(found: dict[str, Any]) -> Picture | None:
    """Return how alike each layer is to its partner, along the depth of the first model."""
    known = [m for m in found["matches"] if m["cka"] is not None]
    if len(known) < 2:
        return None
    axis = Axis.of([m["site"] for m in known])
    rows = [_point(m, axis) for m in known if m["site"] in axis.names]
    columns = ("site", "partner", "CKA", "error", "neighbours", "A explains B", "B explains A")
    table = tuple(
        (m["site"], m["other"], m["cka"], m["cka_se"], m["neighbours"], m["forward"], m["backward"])
        for m in found["matches"]
    )

    def draw(width: int) -> Any:
        x = x_sites(axis.labels, width, axis.title)
        scale = alt.Scale(domain=[min(0.0, *(r["lo"] for r in rows)), 1.0], nice=False)
        y = alt.Y("v:Q", scale=scale, axis=y_axis())
        bars = layer(rows).mark_rule(color="var(--c1)", opacity=0.5, aria=False)
        errors = bars.encode(x=x, y=alt.Y("lo:Q", scale=scale, axis=y_axis()), y2="hi:Q")
        return sized([errors, *line(rows, x, y)], width, 220)

    note = "Debiased CKA with its 95 % interval; a layer's partner has the same name, else it is "
    note += "the most alike."
    least = min(known, key=lambda m: m["cka"])
    message = f"Least alike to its partner: {axis.say(least['site'])} (CKA {number(least['cka'])})"
    return Picture("alike", message, draw, Numbers(columns, table, "matches"), note)


def _point(match: dict[str, Any], axis: Axis) -> dict[str, Any]:
    v, error = match["cka"], 1.96 * (match["cka_se"] or 0.0)
    text = tip(match["site"], match["other"], f"CKA {number(v)}")
    return {"s": axis.names[match["site"]], "v": v, "lo": v - error, "hi": v + error, "t": text}


def moved_picture(found: dict[str, Any]) -> Picture | None:
    """Return how far states of one name moved, along the depth."""
    moved = [m for m in found["matches"] if m["movement"] is not None]
    if len(moved) < 2:
        return None
    axis = Axis.of([m["site"] for m in moved])
    rows: Rows = [
        {
            "s": axis.names[m["site"]],
            "v": m["movement"]["size"],
            "t": tip(m["site"], f"moved {number(m['movement']['size'])} spreads"),
        }
        for m in moved
        if m["site"] in axis.names
    ]
    most = max(moved, key=lambda m: m["movement"]["size"])
    message = f"States moved most at {axis.say(most['site'])}: "
    message += f"{number(most['movement']['size'])} of their own spreads"

    def draw(width: int) -> Any:
        x = x_sites(axis.labels, width, axis.title)
        return sized(line(rows, x, alt.Y("v:Q", axis=y_axis())), width, 200)

    columns = ("site", "moved", "in common", "strongest direction", "units that moved most")
    table = tuple(
        (
            m["site"],
            m["movement"]["size"],
            m["movement"]["common"],
            m["movement"]["direction"],
            ", ".join(f"{u} ({number(v, 2)})" for u, v in m["movement"]["units"]) or None,
        )
        for m in moved
    )
    note = "Root mean square change of a state, in standard deviations of the first model's states "
    note += "along it. In common: share of the change that is one shift of all rows."
    return Picture("moved", message, draw, Numbers(columns, table, "moved"), note)
