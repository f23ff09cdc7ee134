"""The document of a drift between two fits."""

from typing import Any, Final

from sonde.core.wording import gib
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Numbers
from sonde.report._pictures_drift import (
    UNMOVED,
    angles_picture,
    grid_picture,
    mean_picture,
    question,
    units_picture,
)
from sonde.report.document import Document, Part, Prose, Section, Table, figures

_NO_UNITS: Final = "No unit has a histogram that can be compared."
_ROWS: Final = {
    "same": "the same rows on both sides, compared one by one",
    "some": "some groups occur on both sides",
    "other": "different rows on the two sides",
}
_SITES: Final = {
    "moved": "yes if one of its comparisons moved",
    "adjusted p": "smallest p-value of the site, corrected for all comparisons",
    "mean, sd": "how far the mean moved, in standard deviations along its direction",
    "angle": "largest angle of the leading directions, in degrees",
}
_UNITS: Final = {
    "effect": "distance between its two distributions, measured by the test named (ks: 0 to 1)",
    "by sd": "how far its values moved, in standard deviations",
    "p": "corrected for all units of the site",
}
_COMPARED: Final = {
    "value": "size of the difference; sonde methods METHOD prints its unit",
    "no change": "expected value if nothing had changed",
    "adjusted": "p, corrected for all comparisons",
    "first": "independent rows of the first side: groups, if rows come in groups",
    "second": "the same for the second side",
}
MOST_UNITS: Final = 8
SIDES: Final = ("first", "second")


def document(found: dict[str, Any]) -> Document:
    """Return a drift as a document: changed sites, directions and units.

    Parameters
    ----------
    found : dict
        JSON of a drift, ``sonde-drift/1``.
    """
    level = "warning" if found["moved"] else "clear" if found["moved"] is False else "withheld"
    label = {"warning": "moved", "clear": "not moved", "withheld": "not tested"}[level]
    facts = [
        ("first, the reference", _side(found["first"])),
        ("second", _side(found["second"])),
        ("rows", _ROWS[found["rows"]]),
        ("model", "the same" if found["same_model"] else _models(found)),
        ("level", f"{found['level']:g}, corrected ({found['correction']})"),
    ]
    inside = [] if found["identical"] else [_units(found), _directions(found)]
    return Document(
        "drift",
        "What moved between two fits",
        _verdict(found),
        facts,
        [_where(found), *inside, _comparisons(found), sizes(found["states"])],
        subject="What moved",
        badge=(level, label),
        notes=found["notes"],
    )


def sizes(states: list[dict[str, Any]]) -> Section:
    """Return the sizes of the states on both sides."""
    columns = ("site", "side", "state", "part", "bytes", "read by")
    rows = tuple(
        (s["site"], s["side"], s["statistic"], s["part"], s["bytes"], ", ".join(s["read_by"]))
        for s in states
    )
    total = {side: sum(s["bytes"] for s in states if s["side"] == side) for side in SIDES}
    lead = f"{plural(len(rows), 'state')}; "
    lead += ", ".join(f"{side}: {gib(n_bytes)}" for side, n_bytes in total.items())
    table = Table(Numbers(columns, rows, "states"), "States", folded=True, most=len(rows))
    return Section("states", "States", [table], lead, where="verbose")


def _verdict(found: dict[str, Any]) -> str:
    if found["identical"]:
        return "Both files hold the same states: nothing moved"
    if found["moved"] is None:
        return "Nothing could be tested"
    sites = found["sites"]
    moved = [s for s in sites if s["moved"]]
    many = plural(len(sites), "site")
    n_known = sum(c["p"] is not None for c in found["comparisons"])
    level = f"at level {found['level']:g}, corrected for {plural(n_known, 'comparison')}"
    return f"{len(moved) or 'None'} of {many} moved {level}"


def _side(side: dict[str, Any]) -> str:
    groups = f" in {plural(side['n_groups'], 'group')}" if side["n_groups"] else ""
    return f"{shown(side['name'], 120)}: {plural(side['n_examples'], 'example')}{groups}"


def _models(found: dict[str, Any]) -> str:
    marks = [found[word]["model"] for word in SIDES]
    if None in marks:
        return "not known: the rows are arrays"
    return f"two: fingerprints {marks[0][:12]} and {marks[1][:12]}"


def _where(found: dict[str, Any]) -> Section:
    columns = (
        "site", "moved", "adjusted p", "clearest in", "mean, sd", "units moved", "angle",
        "moved in",
    )  # fmt: skip
    rows = tuple(
        (
            s["site"],
            "not tested" if s["moved"] is None else "yes" if s["moved"] else "no",
            s["adjusted"],
            None if s["clearest"] is None else question(s["clearest"]),
            (s["direction"] or {}).get("deviations"),
            s["n_units_moved"],
            max(s["angles"]) if s["angles"] else None,
            ", ".join(question(method) for method in s["by"]) or None,
        )
        for s in sorted(found["sites"], key=lambda s: 2 if s["adjusted"] is None else s["adjusted"])
    )
    parts = figures(grid_picture(found), where="page")
    parts.append(
        Table(
            Numbers(columns, rows, "sites"),
            "Sites",
            folded=len(rows) > 16,
            meanings=_SITES,
            brief=columns[:-1],
        )
    )
    lead = (
        "A site counts as moved if one of its comparisons shows a significant change. p-values "
        "are not corrected for the number of tests."
    )
    if found["correction"] == "holm":
        lead = (
            "A site counts as moved if one of its comparisons shows a significant change; the "
            "level bounds the probability of any false alarm on the whole page."
        )
    return Section("where", "What moved where", parts, lead)


def _units(found: dict[str, Any]) -> Section:
    picture = units_picture(found)
    parts: list[Part] = [*figures(picture)] if picture else [Prose(_NO_UNITS, "empty", "page")]
    moved = [(s["site"], u) for s in found["sites"] for u in s["units"] if u["moved"]]
    if moved:
        rows = tuple(
            (site, u["unit"], u["effect"], u["moved_by"], u["adjusted"])
            for site, u in sorted(moved, key=lambda pair: pair[1]["adjusted"])
        )
        numbers = Numbers(("site", "unit", "effect", "by sd", "p"), rows, "units-moved")
        title = "Units that moved most clearly"
        parts.append(Table(numbers, title, meanings=_UNITS, most=MOST_UNITS, where="terminal"))
    return Section("units", "Units", parts)


def _directions(found: dict[str, Any]) -> Section:
    parts = figures(mean_picture(found), angles_picture(found))
    direction = found["direction"]
    if direction is None:
        return Section("directions", "Directions", parts or [Prose(UNMOVED, "empty")])
    site = next(s for s in found["sites"] if s["site"] == direction["site"])["direction"]
    units = ", ".join(f"{unit} ({weight:+.2f})" for unit, weight in site["units"][:6])
    far, noise = site["deviations"], site["beyond_noise"]
    size = "" if far is None else f" by {number(far, 2)} standard deviations"
    sure = "" if noise is None else f", {share(noise, 2)} of its square above noise"
    name = shown(direction["site"].removesuffix(":out"), 200)
    parts += [
        Prose("The direction that moved most", "heading", "page"),
        Prose(f"The mean moved most at {name}{size}{sure}: units {units}."),
    ]
    vector = direction["vector"]
    if vector is None:
        parts.append(Prose("The direction has too many components for this page.", "empty", "page"))
    else:
        order = sorted(range(len(vector)), key=lambda unit: -abs(vector[unit]))
        rows = tuple((str(unit), vector[unit]) for unit in order)
        numbers = Numbers(("unit", "component"), rows, "direction")
        title = "Unit vector, largest components first"
        parts.append(Table(numbers, title, folded=True, where="page"))
    return Section("directions", "Directions", parts)


def _comparisons(found: dict[str, Any]) -> Section:
    columns = (
        "site", "method", "value", "no change", "p", "adjusted", "first", "second", "rows", "flags",
    )  # fmt: skip
    rows = tuple(
        (
            c["site"],
            c["method"],
            c["value"],
            c["null"],
            c["p"],
            c["adjusted"],
            c["n_first"],
            c["n_second"],
            "; ".join(dict.fromkeys(c["basis"])),
            ", ".join(c["flags"]) or None,
        )
        for c in found["comparisons"]
    )
    parts: list[Part] = [
        Table(Numbers(columns, rows, "comparisons"), "Comparisons", folded=False,
              meanings=_COMPARED, brief=columns[:6], where="verbose")
    ]  # fmt: skip
    if found["left_out"]:
        left = tuple((e["site"], e["method"], e["reason"]) for e in found["left_out"])
        words = f"{plural(len(left), 'comparison')} could not be made; -v prints the reasons."
        numbers = Numbers(("site", "method", "reason"), left, "left out")
        parts += [
            Prose(words, where="terminal"),
            Table(numbers, "Left out", folded=True, where="verbose"),
        ]
    lead = (
        "Value: the size of the difference; compare it with its expected value without any change."
    )
    return Section("comparisons", "All comparisons", parts, lead)
