"""The difference of two reports: findings matched by code and site, numbers by their errors.

Use it for a baseline in a gate, or to read two checkpoints side by side; to compare the states
themselves rather than their reports, compare the saved states.
"""

import math
from statistics import NormalDist
from typing import Any, Final

from sonde.report._format import LEVELS, Real

Report = dict[str, Any]
Entry = dict[str, Any]

STATES: Final = ("new", "worse", "gone", "better", "same", "unjudged")
_MOVED: Final = 3.0
_ROUNDING: Final = 1e-3
_UNKNOWN: Final = 0.1
_MUST_AGREE: Final = ("reducer", "dtype")


def diff(a: Report, b: Report) -> dict[str, Any]:
    """Return the differences of findings and numbers from ``a`` to ``b``.

    Parameters
    ----------
    a, b : dict
        JSON of two scans, schema ``sonde-scan/1``; ``a`` is the older one.

    Returns
    -------
    dict
        ``schema`` "sonde-diff/1"; ``a``, ``b``: names of model and data; ``differs``: what differs
        in provenance; ``comparable``: False if reducer or dtype differ, then nothing is
        called better or worse; ``findings``: code, title, state, level_a, level_b, sites, figure_a,
        figure_b, before (state of the check in ``a``), after; ``figures``: name, site, a, b, se,
        moved; ``only_a``, ``only_b``: sites in one of them; ``counts``: findings by state.
        States: new, gone, worse, better (the level moved, or the figure by more than three combined
        standard errors, and by more than a tenth where a figure has no interval), same, unjudged
        (the site or the figure is in one report only, or not comparable).
    """
    differs = _provenance(a, b)
    comparable = not any(row["key"].rpartition(".")[2] in _MUST_AGREE for row in differs)
    sites_a, sites_b = ([row["site"] for row in report["sites"]] for report in (a, b))
    findings = _findings(a, b, comparable)
    return {
        "schema": "sonde-diff/1",
        "a": _name(a),
        "b": _name(b),
        "differs": differs,
        "comparable": comparable,
        "findings": findings,
        "figures": _shared_figures(a, b),
        "only_a": [site for site in sites_a if site not in set(sites_b)],
        "only_b": [site for site in sites_b if site not in set(sites_a)],
        "counts": {state: sum(f["state"] == state for f in findings) for state in STATES},
    }


def new_or_worse(difference: dict[str, Any]) -> list[Entry]:
    """Return the findings of a difference that count for a gate with a baseline.

    Parameters
    ----------
    difference : dict[str, Any]
        Document of a difference between two reports.
    """
    return [entry for entry in difference["findings"] if entry["state"] in {"new", "worse"}]


def _name(report: Report) -> dict[str, str]:
    where = report["provenance"]
    return {"model": where["model"]["name"], "data": where["data"]["name"]}


def _provenance(a: Report, b: Report) -> list[dict[str, Any]]:
    rows = []
    for part in ("model", "data", "other", None, "versions"):
        x, y = (_part(report["provenance"], part) for report in (a, b))
        for key in dict.fromkeys([*x, *y]):
            if x.get(key) != y.get(key):
                name = f"{part}.{key}" if part else key
                rows.append({"key": name, "a": x.get(key), "b": y.get(key)})
    return rows


def _part(where: dict[str, Any], part: str | None) -> dict[str, Any]:
    if part is None:
        keys = ("reducer", "special_tokens", "sites", "seed", "unit_size", "thresholds")
        return {key: where.get(key) for key in keys}
    return dict(where.get(part) or {})


def _findings(a: Report, b: Report, comparable: bool) -> list[Entry]:
    left, right = _by_code(a), _by_code(b)
    entries = []
    for code in sorted({*left, *right}):
        for x in left.get(code, ()):
            for y in right.get(code, ()):
                common = _common(x, y)
                if common is not None:
                    entries.append(_entry(a, b, x, y, common, _moved(x, y, comparable)))
        entries += _alone(a, b, left.get(code, []), right.get(code, []), "gone")
        entries += _alone(a, b, right.get(code, []), left.get(code, []), "new")
    return sorted(entries, key=_order)


def _order(entry: Entry) -> tuple[int, int, str]:
    level = entry["level_b"] or entry["level_a"]
    return STATES.index(entry["state"]), LEVELS.index(level), entry["code"]


def _by_code(report: Report) -> dict[str, list[dict[str, Any]]]:
    by_code: dict[str, list[dict[str, Any]]] = {}
    for finding in report["findings"]:
        if not finding["ignored"]:
            by_code.setdefault(finding["code"], []).append(finding)
    return by_code


def _common(x: dict[str, Any], y: dict[str, Any]) -> list[str] | None:
    """Return the sites that both findings name, or None if they share no site."""
    if not x["sites"] and not y["sites"]:
        return []
    common = [site for site in y["sites"] if site in set(x["sites"])]
    return common or None


def _alone(a: Report, b: Report, these: list, those: list, state: str) -> list[Entry]:
    """Return the entries of some findings at sites that the other findings do not name."""
    entries = []
    elsewhere = {row["site"] for row in (a if state == "new" else b)["sites"]}
    taken = {site for finding in those for site in finding["sites"]}
    placeless = any(not finding["sites"] for finding in those)
    for finding in these:
        if not finding["sites"]:
            if not placeless:
                entries.append(_one(a, b, finding, [], state))
            continue
        free = [site for site in finding["sites"] if site not in taken]
        sites = [site for site in free if site in elsewhere]
        unknown = [site for site in free if site not in elsewhere]
        entries += [_one(a, b, finding, sites, state)] if sites else []
        entries += [_one(a, b, finding, unknown, "unjudged", state)] if unknown else []
    return entries


def _one(a: Report, b: Report, finding: Any, sites: list[str], state: str, side: str = "") -> Entry:
    gone = (side or state) == "gone"
    return _entry(a, b, finding if gone else None, None if gone else finding, sites, state)


def _entry(a: Report, b: Report, x: Any, y: Any, sites: list[str], state: str) -> Entry:
    shown = y or x
    code = shown["code"]
    return {
        "code": code,
        "title": shown["title"],
        "state": state,
        "level_a": x and x["level"],
        "level_b": y and y["level"],
        "sites": sites,
        "sentence": shown["sentence"],
        "figure_a": x and x["figure"],
        "figure_b": y and y["figure"],
        "before": _state(a, code),
        "after": _state(b, code),
    }


def _state(report: Report, code: str) -> str | None:
    return next((c["state"] for c in report["checks"] if c["code"] == code), None)


def _moved(x: dict[str, Any], y: dict[str, Any], comparable: bool) -> str:
    if not comparable:
        return "unjudged"
    step = LEVELS.index(x["level"]) - LEVELS.index(y["level"])
    if step:
        return "worse" if step > 0 else "better"
    before, after = x["figure"], y["figure"]
    if not before or not after or before["value"] is None or after["value"] is None:
        return "same" if not before and not after else "unjudged"
    if before["name"] != after["name"] or before["unit"] != after["unit"]:
        return "unjudged"
    change = after["value"] - before["value"]
    size = max(abs(before["value"]), abs(after["value"]))
    errors = [_error(before), _error(after)]
    present = [e for e in errors if e is not None]
    least = _ROUNDING if len(present) == 2 else _UNKNOWN
    if abs(change) <= max(_MOVED * math.hypot(*present), least * size):
        return "same"
    worse = change > 0 if after["direction"] != "below" else change < 0
    return "worse" if worse else "better"


def _error(figure: dict[str, Any]) -> Real | None:
    """Return the standard error behind an interval; None without one."""
    if figure["low"] is None or figure["high"] is None:
        return None
    confidence = figure.get("confidence") or 0.95  # reports of earlier versions do not say
    return (figure["high"] - figure["low"]) / (2 * NormalDist().inv_cdf((1 + confidence) / 2))


def _shared_figures(a: Report, b: Report) -> list[dict[str, Any]]:
    """Return every number that both reports have at a site; ``moved`` is None without errors."""
    before = {row["site"]: row["values"] for row in a["sites"]}
    rows = []
    for row in b["sites"]:
        for name, y in row["values"].items():
            x = before.get(row["site"], {}).get(name)
            if x is None or x["value"] is None or y["value"] is None:
                continue
            have_errors = x.get("se") is not None and y.get("se") is not None
            se = math.hypot(x["se"], y["se"]) if have_errors else None
            change = abs(y["value"] - x["value"])
            moved = None if se is None else change > max(_MOVED * se, _ROUNDING * abs(x["value"]))
            head = {"name": name, "site": row["site"], "a": x["value"], "b": y["value"]}
            rows.append({**head, "se": se, "moved": moved})
    return rows
