"""Leaves out of the JSON in a page what would make the page too large."""

import json
from typing import Any

from sonde.report._format import Real
from sonde.report._select import drawn

_SAID = "The JSON in this page leaves out {}; `sonde scan --json` prints all of it."


def thinned(report: dict[str, Any], room: int) -> dict[str, Any]:
    """Return the report, without curves, similarity or sites that are not drawn where it must.

    Parameters
    ----------
    report : dict
        Never changed.
    room : int
        Bytes that the JSON may take.
    """
    kept = dict(report)
    for said, step in (
        ("the similarity of sites that are not drawn", _similarity),
        ("curves and units of sites that are not drawn", _curves),
        ("sites that are not drawn", _sites),
        ("the map of rows", _map),
    ):
        if _bytes(kept) <= room:
            break
        kept = {**step(kept), "limits": [*kept["limits"], _SAID.format(said)]}
    return kept


def _bytes(report: dict[str, Any]) -> int:
    text = json.dumps(report, separators=(",", ":"))
    return len(text) + 5 * (text.count("<") + text.count(">") + text.count("&"))


def _similarity(report: dict[str, Any]) -> dict[str, Any]:
    known = report.get("similarity")
    if not known:
        return report
    names = set(drawn(known["sites"]))
    at = [i for i, site in enumerate(known["sites"]) if site in names]
    cut = {"sites": [known["sites"][i] for i in at]}
    for key in ("cka", "se", "null"):
        matrix = known.get(key)
        whole = isinstance(matrix, list)
        cut[key] = [[_short(matrix[i][j]) for j in at] for i in at] if whole else matrix
    return {**report, "similarity": {**known, **cut}}


def _short(value: Real | None) -> Real | None:
    return None if value is None else float(f"{value:.4g}")


def _kept_sites(report: dict[str, Any]) -> set[str]:
    return set(drawn([row["site"] for row in report["sites"]]))


def _curves(report: dict[str, Any]) -> dict[str, Any]:
    names = _kept_sites(report)
    sites = [row if row["site"] in names else {**row, "curves": {}} for row in report["sites"]]
    units = [row for row in report.get("units") or [] if row["site"] in names]
    return {**report, "sites": sites, "units": units}


def _sites(report: dict[str, Any]) -> dict[str, Any]:
    names = _kept_sites(report)
    return {**report, "sites": [row for row in report["sites"] if row["site"] in names]}


def _map(report: dict[str, Any]) -> dict[str, Any]:
    rows = report.get("rows")
    return {**report, "rows": {**rows, "map": None}} if rows else report
