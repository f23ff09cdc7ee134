"""The last sections: what the scan cannot see, and where the report comes from."""

from collections.abc import Sequence
from typing import Any

from sonde.core.wording import gib
from sonde.report._format import number, plural, seconds, shown, words
from sonde.report._markup import ElementIds, Markup, code, el, join
from sonde.report._parts import command, definitions, drawer, section, tabled
from sonde.report._picture import Numbers


def limits_section(report: dict[str, Any], absent: Sequence[Markup] = ()) -> Markup:
    """Return what this scan cannot see: what was not measured, checks that were withheld."""
    items = [*absent, *(el("li", text) for text in report["limits"])]
    for state in ("withheld", "failed"):
        for check in report["checks"]:
            if check["state"] == state:
                said = f" {check['title']}: {state}; {check['reason'] or 'no reason given'}."
                items.append(el("li", el("span", check["code"], cls="code"), said))
    folded = drawer(plural(len(items), "limit"), el("ul", *items, cls="limits"), cls="more")
    return section("limits", "What this scan cannot see", folded)


def provenance_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return model, data, run, versions and the exact command."""
    where = report["provenance"]
    parts = [el("h3", "Model"), definitions(_pairs(where["model"]))]
    parts += [el("h3", "Data"), definitions(_pairs(where["data"]))]
    if where["other"]:
        parts += [el("h3", "Other data"), definitions(_pairs(where["other"]))]
    parts += [el("h3", "Run"), definitions(_run(where))]
    if report.get("left_out"):
        rows = tuple((entry["site"], entry["reason"]) for entry in report["left_out"])
        parts += [
            el("h3", "Sites that were left out"),
            tabled(Numbers(("site", "reason"), rows, "sites"), names, "Sites that were left out"),
        ]
    if where.get("thresholds"):
        moved = [(key, number(value)) for key, value in where["thresholds"].items()]
        parts += [el("h3", "Thresholds that were moved"), definitions(moved)]
    if where.get("instruments"):
        rows = tuple(
            tuple(row[k] for k in ("name", "sites", "rows", "n_rows"))
            for row in where["instruments"]
        )
        columns = ("statistic", "sites", "which rows", "rows")
        parts += [
            el("h3", "What was computed"),
            tabled(Numbers(columns, rows, "statistics"), names, "Statistics"),
        ]
    parts += [el("h3", "Versions"), definitions([(k, v) for k, v in where["versions"].items()])]
    parts += [el("h3", "Command"), command(where["command"])]
    button = el("button", "Copy the JSON of this report", type="button", data_json="sonde")
    closing = el("p", button, " Schema ", code(report["schema"]), ".", cls="closing")
    folded = drawer("Model, data, run, versions and command", *parts, cls="more")
    return section("provenance", "Provenance", folded, closing)


def _run(where: dict[str, Any]) -> list[tuple[str, str | None]]:
    known = {
        "wall time": None if where.get("wall_seconds") is None else seconds(where["wall_seconds"]),
        "peak memory": None
        if where.get("peak_memory_bytes") is None
        else gib(where["peak_memory_bytes"]),
    }
    keys = (
        "sites",
        "reducer",
        "special_tokens",
        "seed",
        "unit_size",
        "workers",
        "threads",
        "started",
        "state_id",
    )
    plain = [(words(key), _shown(where[key])) for key in keys if where.get(key) is not None]
    return [*plain, *known.items()]


def _pairs(values: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [
        (words(key.removeprefix("n_")), _shown(value))
        for key, value in values.items()
        if value is not None
    ]


def _shown(value: Any) -> Markup | str:
    if isinstance(value, str):
        return join(shown(value, 300))
    return number(value)
