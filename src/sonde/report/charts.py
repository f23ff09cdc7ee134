"""Charts of results, drawn as SVG, as text, or as a page for a whole bundle."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.core.result import Result
from sonde.core.wording import plural
from sonde.report._chart_text import chart_to_text as chart_to_text
from sonde.report._fit import WIDE
from sonde.report._format import shown
from sonde.report._picture import Numbers, Picture
from sonde.report._standalone import Svg, drawn
from sonde.report.document import Document, Section, figures

MOST_CHARTS = 60

Named = Iterable[tuple[tuple[str, str], Result]]


def chart_to_svg(chart: Chart, width: int = WIDE) -> Svg:
    """Return a chart as the text of an SVG file, which notebooks show and ``save`` writes.

    Parameters
    ----------
    chart : dict
        What ``Result.chart`` returns.
    width : int, default=770
    """
    return drawn([chart_picture(chart, "chart")], width)


def chart_picture(chart: Chart, key: str) -> Picture:
    """Return a chart as a picture of a page, with its numbers."""
    rows = chart.get("data", {}).get("values", [])
    columns = tuple(name for name in (rows[0] if rows else {}) if name != "tip")
    table = tuple(tuple(row.get(name) for name in columns) for row in rows)
    numbers = Numbers(columns, table, key) if columns else None
    return Picture(key, shown(chart.get("title") or key, 200), lambda width: chart, numbers)


def charts_of(results: Named) -> Iterator[tuple[str, Chart]]:
    """Yield the charts of results with their methods; scalar results become curves over sites."""
    by_method: dict[str, dict[str, Result]] = {}
    for (method, site), result in results:
        by_method.setdefault(method, {})[site] = result
    for method, results_of in by_method.items():
        rows = [_row(site, result) for site, result in results_of.items() if _single(result)]
        if len(rows) > 1:
            bands = [("low", "high")] if all("low" in row for row in rows) else []
            title = f"{method} at {plural(len(rows), 'site')}"
            yield method, curves(title, rows, "site", ChartAxis("value"), bands=bands)
        for site, result in results_of.items():
            chart = result.chart()
            if len(chart.get("data", {}).get("values", ())) > 1 or "data" not in chart:
                yield method, chart | {"title": f"{chart['title']}: {method} at {site}"}


def _single(result: Result) -> bool:
    return isinstance(result.value, float | int) and math.isfinite(result.value)


def _row(site: str, result: Result) -> dict[str, Any]:
    value, se = float(result), result.se
    row: dict[str, Any] = {"site": site, "value": value}
    if not isinstance(se, float | int) or not math.isfinite(se):
        return row
    return row | {"low": value - 1.96 * se, "high": value + 1.96 * se}


def charts_document(results: Named, name: str) -> dict[str, Any]:
    """Return the charts of a bundle, or of any named results, as JSON (``sonde-charts/1``).

    Parameters
    ----------
    results : iterable of ((method, site), Result)
        What iterating over a ``Fitted`` gives.
    name : str
        What they are about.
    """
    charts = list(charts_of(results))
    kept = [{"method": method, "chart": chart} for method, chart in charts[:MOST_CHARTS]]
    return {"schema": "sonde-charts/1", "name": name, "n_charts": len(charts), "charts": kept}


def document(found: dict[str, Any]) -> Document:
    """Return the charts of a bundle as a document.

    Parameters
    ----------
    found : dict
        JSON of charts, ``sonde-charts/1``.
    """
    parts = dict[str, list[Picture]]()
    for i, one in enumerate(found["charts"]):
        picture = chart_picture(one["chart"], f"chart-{i}")
        parts.setdefault(one["method"], []).append(picture)
    sections = [
        Section(f"method-{i}", shown(method, 80), figures(*pictures))
        for i, (method, pictures) in enumerate(parts.items())
    ]
    verdict = f"{plural(found['n_charts'], 'chart')} of {plural(len(parts), 'method')}"
    left_out = found["n_charts"] - len(found["charts"])
    verdict += f"; {left_out} more are not drawn" if left_out else ""
    facts = [("file", shown(found["name"], 200))]
    return Document("info", "What was fitted", verdict, facts, sections, subject=found["name"])
