"""A drift as text for a terminal of 80 columns."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, Final

from sonde.core.wording import gib
from sonde.report._format import number, p_value, plural, share, shown

COLUMNS: Final = 80
UNMOVED: Final = "No mean moved farther than it does without any change."
QUESTIONS: Final = {
    "hotelling": "mean",
    "unit_shift": "units",
    "subspace_shift": "directions",
    "frechet": "mean and spread",
    "fourier_mmd": "anything",
    "mmd": "anything",
    "classifier_two_sample": "linear classifier",
    "reconstruction_shift": "energy outside",
}
MOST_SITES: Final = 12
LEGEND: Final = """p         smallest p-value of the site, corrected for all comparisons
mean, sd  how far the mean moved, in standard deviations along its direction
units     how many units moved; angle: of the leading directions, in degrees"""
UNITS: Final = """effect  how far apart its two distributions lie, by its test (ks: 0 to 1)
by sd   how far its values moved, in standard deviations
p       corrected for all units of the site"""
COMPARED: Final = """value      size of the difference; sonde methods METHOD says its unit
no change  what the value would be on average if nothing had changed
adjusted   p, corrected for all comparisons"""


def verdict(document: dict[str, Any]) -> str:
    """Return what a drift says in one line."""
    if document["identical"]:
        return "The same states twice: nothing moved"
    if document["moved"] is None:
        return "Nothing could be tested"
    sites = document["sites"]
    moved = [s for s in sites if s["moved"]]
    many = plural(len(sites), "site")
    level = f"at level {document['level']:g}, corrected for {_tests(document)}"
    if not moved:
        return f"None of {many} moved {level}"
    return f"{len(moved)} of {many} moved {level}"


def _tests(document: dict[str, Any]) -> str:
    known = sum(c["p"] is not None for c in document["comparisons"])
    return plural(known, "comparison")


def drift_to_text(document: dict[str, Any], verbose: bool = False) -> str:
    """Return a drift as lines of at most 80 columns.

    Parameters
    ----------
    document : dict
        JSON of a drift, ``sonde-drift/1``.
    verbose : bool, default=False
        Every comparison, and every site.
    """
    parts = [_sides(document), *(_wrapped(n, "note  ") for n in document["notes"])]
    parts += [f"{verdict(document)}.", _sites(document, verbose), LEGEND]
    if not document["identical"]:
        parts += [_units(document), _direction(document)]
    if verbose:
        parts.append(_comparisons(document))
    parts.append(_left_out(document, verbose))
    return "\n\n".join(part for part in parts if part) + "\n"


def _sides(document: dict[str, Any]) -> str:
    lines = []
    for word in ("first", "second"):
        side = document[word]
        count = plural(side["n_examples"], "example")
        groups = f" in {plural(side['n_groups'], 'group')}" if side["n_groups"] else ""
        model = f", model {side['model'][:8]}" if side["model"] else ""
        name = _cut(side["name"], 30)
        lines.append(f"{word:<7} {name}: {count}{groups}{model}")
    return "\n".join(lines)


def _sites(document: dict[str, Any], verbose: bool) -> str:
    sites = document["sites"]
    kept = sites if verbose else _first(sites)
    rows = [
        (
            _cut(s["site"].removesuffix(":out"), 26),
            "-" if s["moved"] is None else "yes" if s["moved"] else "no",
            "-" if s["adjusted"] is None else p_value(s["adjusted"]),
            QUESTIONS.get(s["clearest"] or "", s["clearest"] or "-"),
            number((s["direction"] or {}).get("deviations"), 2),
            _of(s["n_units_moved"], s["n_units"]),
            "-" if not s["angles"] else f"{number(max(s['angles']), 2)}",
        )
        for s in kept
    ]
    heads = ("site", "moved", "p", "clearest in", "mean, sd", "units", "angle")
    more = len(sites) - len(kept)
    rest = f"\n{plural(more, 'more site')}: -v shows them" if more else ""
    return _table(heads, rows) + rest


def _first(sites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = sorted(sites, key=lambda s: 2.0 if s["adjusted"] is None else s["adjusted"])
    kept = {s["site"] for s in order[:MOST_SITES]}
    return [s for s in sites if s["site"] in kept]


def _of(few: int | None, all_: int | None) -> str:
    return "-" if few is None else f"{few}/{all_}"


def _units(document: dict[str, Any]) -> str:
    rows = [
        (_cut(s["site"].removesuffix(":out"), 28), str(u["unit"]), *_figures(u))
        for s in document["sites"]
        for u in s["units"]
        if u["moved"]
    ]
    if not rows:
        return ""
    best = sorted(rows, key=lambda row: float(row[-1]))[:8]
    heads = ("site", "unit", "effect", "by sd", "p")
    return f"Units that moved most clearly\n{_table(heads, best)}\n\n{UNITS}"


def _figures(unit: dict[str, Any]) -> tuple[str, str, str]:
    return (
        number(unit["effect"], 2),
        number(unit["moved_by"], 2),
        f"{unit['adjusted']:.1g}",
    )


def _direction(document: dict[str, Any]) -> str:
    found = document["direction"]
    if found is None:
        return UNMOVED
    site = next(s for s in document["sites"] if s["site"] == found["site"])
    where = site["direction"]
    units = ", ".join(f"{unit} ({weight:+.2f})" for unit, weight in where["units"][:6])
    far = where["deviations"]
    size = "" if far is None else f" by {number(far, 2)} standard deviations"
    noise = where["beyond_noise"]
    sure = "" if noise is None else f", {share(noise, 2)} of its square beyond noise"
    said = f"The mean moved most at {site['site'].removesuffix(':out')}{size}{sure}: units {units}."
    return _wrapped(said, "")


def _comparisons(document: dict[str, Any]) -> str:
    rows = [
        (
            _cut(c["site"].removesuffix(":out"), 16),
            c["method"],
            number(c["value"], 3),
            number(c["null"], 2),
            "-" if c["p"] is None else p_value(c["p"]),
            "-" if c["adjusted"] is None else p_value(c["adjusted"]),
        )
        for c in document["comparisons"]
    ]
    heads = ("site", "method", "value", "no change", "p", "adjusted")
    return f"{_table(heads, rows)}\n\n{COMPARED}"


def _left_out(document: dict[str, Any], verbose: bool) -> str:
    found = document["left_out"]
    if not found:
        return ""
    if not verbose:
        return f"{plural(len(found), 'comparison')} could not be made: -v says why."
    return "\n".join(
        _wrapped(f"{e['method']} at {e['site']}: {e['reason']}", "left out  ") for e in found
    )


def sizes_to_text(states: list[dict[str, Any]]) -> str:
    """Return how large each state of both sides is, by site."""
    parts = []
    for side in ("first", "second"):
        mine = [s for s in states if s["side"] == side]
        rows = [
            (
                _cut(s["site"].removesuffix(":out"), 26),
                s["statistic"],
                s["part"],
                gib(s["bytes"]),
                _cut(", ".join(s["read_by"]), 22),
            )
            for s in mine
        ]
        total = f"{side}: {gib(sum(s['bytes'] for s in mine))} in {plural(len(mine), 'state')}"
        parts.append(_table(("site", "state", "part", "size", "read by"), rows) + f"\n{total}")
    return "\n\n".join(parts) + "\n"


def _cut(text: str, width: int) -> str:
    text = shown(text, 400)
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _wrapped(text: str, head: str) -> str:
    return "\n".join(
        wrap(head + text, COLUMNS, subsequent_indent=" " * len(head), break_on_hyphens=False)
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under their titles: the first column left, all others right."""
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
