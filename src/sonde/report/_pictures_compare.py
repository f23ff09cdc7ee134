"""The map of two models' layers, how alike each layer and its partner are, and what moved."""

import math
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, curves, matrix
from sonde.report._fit import NARROW, WIDE, Rows, tip
from sonde.report._format import number
from sonde.report._picture import Axis, Numbers, Picture

_MOST: Final = {WIDE: 48, NARROW: 24}


def map_picture(found: dict[str, Any]) -> Picture:
    """Return the similarity of every layer of the first model to every one of the second."""
    sites, others = found["sites"], found["others"]

    message = _map_message(found)

    def draw(width: int) -> Chart:
        across, up = Axis.of(sites, _MOST[width]), Axis.of(others, _MOST[width])
        cells = _cells(found, across, up)
        return matrix(message, cells, across.across("a"), up.upward("b"), "CKA", low=0, high=1)

    rows = tuple((a, *found["cka"][i]) for i, a in enumerate(sites))
    numbers = Numbers(("first \\ second", *others), rows, "cka")
    note = "Debiased CKA: 1 is the same geometry, 0 nothing in common. Across the first model, up "
    note += "the second. A bright diagonal: the same layers do the same work."
    return Picture("map", message, draw, numbers, note, square=True)


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


def _cells(found: dict[str, Any], across: Axis, up: Axis) -> Rows:
    at = {name: i for i, name in enumerate(found["sites"])}
    to = {name: j for j, name in enumerate(found["others"])}
    return [
        {
            "a": across.names[a],
            "b": up.names[b],
            "CKA": found["cka"][at[a]][to[b]],
            "tip": tip(a, b, f"CKA {number(found['cka'][at[a]][to[b]])}"),
        }
        for a in across.sites
        for b in up.sites
    ]


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

    def draw(width: int) -> Chart:
        y = ChartAxis("v", title="", low=min(0.0, *(r["lo"] for r in rows)), high=1.0)
        return curves(message, rows, axis.across(), y, bands=[("lo", "hi")])

    note = "Debiased CKA with its 95 % interval; a layer's partner has the same name, else it is "
    note += "the most alike."
    least = min(known, key=lambda m: m["cka"])
    message = f"Least alike to its partner: {axis.say(least['site'])} (CKA {number(least['cka'])})"
    return Picture("alike", message, draw, Numbers(columns, table, "matches"), note)


def _point(match: dict[str, Any], axis: Axis) -> dict[str, Any]:
    v, error = match["cka"], 1.96 * (match["cka_se"] or 0.0)
    text = tip(match["site"], match["other"], f"CKA {number(v)}")
    return {"s": axis.names[match["site"]], "v": v, "lo": v - error, "hi": v + error, "tip": text}


def moved_picture(found: dict[str, Any]) -> Picture | None:
    """Return how far the states of sites with the same name moved, along the depth."""
    moved = [m for m in found["matches"] if m["movement"] is not None]
    if len(moved) < 2:
        return None
    axis = Axis.of([m["site"] for m in moved])
    rows: Rows = [
        {
            "s": axis.names[m["site"]],
            "v": m["movement"]["size"],
            "tip": tip(m["site"], f"moved {number(m['movement']['size'])} spreads"),
        }
        for m in moved
        if m["site"] in axis.names
    ]
    most = max(moved, key=lambda m: m["movement"]["size"])
    message = f"States moved most at {axis.say(most['site'])}: "
    message += f"{number(most['movement']['size'])} of their own spreads"

    def draw(width: int) -> Chart:
        return curves(message, rows, axis.across(), ChartAxis("v", title="", zero=True))

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
