"""Pictures of a drift: changed sites by method, changes of means and angles, changed units."""

from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, bars, curves, marks
from sonde.report._fit import tip
from sonde.report._format import Real, number, p_value, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture

UNMOVED: Final = "No mean changed significantly."
QUESTIONS: Final = {
    "hotelling": "mean",
    "unit_shift": "units",
    "subspace_shift": "directions",
    "frechet": "mean and spread",
    "fourier_mmd": "anything",
    "mmd": "anything",
    "classifier_two_sample": "linear classifier",
    "reconstruction_shift": "energy outside",
    "nonfinite": "NaN or infinity",
    "missing": "missing values",
}
_STEPS: Final = {
    "moved clearly": "var(--c2)",
    "moved": "var(--c3)",
    "not moved": "var(--grid)",
    "not tested": "var(--paper)",
}


def question(method: str) -> str:
    """Return the question that a method answers, with the method's parameters."""
    word, bracket, rest = method.partition("(")
    return shown(QUESTIONS.get(word, word) + (f" {bracket}{rest}" if bracket else ""), 40)


def grid_picture(found: dict[str, Any]) -> Picture | None:
    """Return a grid of sites and methods that marks significant changes."""
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

    def draw(width: int) -> Chart:
        y = ChartAxis("m", title="", names=methods)
        look = {"colors": _STEPS, "size": 150, "stroke": "var(--line)"}
        return marks(message, rows, axis.across(), y, by="k", **look)

    note = (
        "One line per comparison. Anything: any difference of the distributions. Linear "
        "classifier: whether a linear classifier separates the two sides. Energy outside: the "
        "fraction outside the leading directions of the first side. p-values are corrected for "
        "the number of comparisons; clearly: at most 0.001."
    )
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
        "k": list(_STEPS)[kind],
        "tip": text,
    }


def mean_picture(found: dict[str, Any]) -> Picture | None:
    """Return the change of each site's mean, in standard deviations along its direction."""
    sites = [s for s in found["sites"] if s["direction"] and s["direction"]["deviations"]]
    if not sites:
        return None
    axis = Axis.of([s["site"] for s in sites])
    rows = []
    for s in (s for s in sites if s["site"] in axis.names):
        far, noise = s["direction"]["deviations"], s["direction"]["beyond_noise"]
        text = tip(s["site"], f"{number(far)} standard deviations", f"{share(noise, 2)} no noise")
        rows.append({"s": axis.names[s["site"]], "v": far, "tip": text})
    message = UNMOVED.removesuffix(".")
    if found["direction"] is not None:
        best = next(s for s in sites if s["site"] == found["direction"]["site"])
        far = number(best["direction"]["deviations"])
        message = f"The mean changed most at {axis.say(best['site'])}: {far} standard deviations"
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

    def draw(width: int) -> Chart:
        return curves(message, rows, axis.across(), ChartAxis("v", title="", zero=True))

    note = (
        "Along the direction in which the mean changed. A small change may be noise: see the table."
    )
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
            "tip": tip(s["site"], f"{number(angle)} degrees", f"p = {number(p.get(s['site']), 2)}"),
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

    def draw(width: int) -> Chart:
        y = ChartAxis("v", title="", low=0, high=top)
        return marks(message, rows, axis.across(), y, opacity=0.75)

    note = "Angles between the leading directions of both sides. Directions of nearly equal "
    note += "variance turn without any change; the p-value takes this into account."
    return Picture("angles", message, draw, Numbers(columns, table, "angles"), note)


def _units(axis: list[list[Real]] | None) -> str:
    return ", ".join(f"{int(unit)} ({weight:+.2f})" for unit, weight in axis or ())


def units_picture(found: dict[str, Any]) -> Picture | None:
    """Return the units that changed most, at the site with the clearest changes.

    If the histogram cannot tell how far a unit moved, the unit stands only in the table.
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
            "tip": tip(
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

    def draw(width: int) -> Chart:
        x = ChartAxis("s", title="unit", names=[row["s"] for row in rows])
        colors = {"moved": "var(--c2)", "not moved": "var(--c1)"}
        return bars(message, rows, x, ChartAxis("v", title=""), by="k", colors=colors)

    note = (
        "Wasserstein distance of each unit's values in pooled standard deviations; p-values "
        "are corrected for the units of the site, and the units with the clearest change come "
        "first."
    )
    return Picture("units", message, draw, Numbers(columns, table, "units"), note)
