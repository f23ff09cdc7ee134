"""The report in a notebook: a short view without scripts, and its text."""

from typing import Any

from sonde.report._markup import Markup, el, text
from sonde.report._parts import badge
from sonde.report._pictures_depth import depth_pictures
from sonde.report._section_findings import verdict_line
from sonde.report._select import runs, select
from sonde.report._standalone import drawn
from sonde.report.terminal import to_text


def to_mime(report: dict[str, Any]) -> dict[str, str]:
    """Return the report as ``text/html`` and ``text/plain``.

    Parameters
    ----------
    report : dict
        JSON of a scan, schema ``sonde-scan/1``.

    Returns
    -------
    dict
        Mime type -> content, for ``_repr_mimebundle_``. The HTML holds verdict, findings and the
        depth profile; the whole page is what ``save_report`` writes.
    """
    return {"text/html": _view(report), "text/plain": to_text(report)}


def _view(report: dict[str, Any]) -> Markup:
    where = report["provenance"]
    chosen = select(report["findings"])
    sites = [row["site"] for row in report["sites"]]
    names = el("b", where["model"]["name"]), " on ", el("b", where["data"]["name"])
    items = [_item(finding, sites) for finding in (*chosen.first, *chosen.more)]
    verdict = el("p", verdict_line(report["verdict"]))
    depth = depth_pictures(report) if report["sites"] else []
    drawing = el("details", el("summary", "Depth profile"), Markup(drawn(depth))) if depth else None
    return el("div", el("p", "sonde scan: ", *names), verdict, *items, drawing)


def _item(finding: dict[str, Any], sites: list[str]) -> Markup:
    place = ", ".join(runs(finding["sites"], sites)[:3])
    head = el("summary", _mark(finding["level"]), " ", el("b", finding["title"]), " ", text(place))
    body = (
        el("p", finding["sentence"]),
        el("p", finding["why"]),
        el("p", el("code", finding["next"])) if finding["next"] else None,
    )
    return el("details", head, *body, open=finding["level"] != "note")


def _mark(level: str) -> Markup:
    """Return a level's word and symbol with inline style, since notebooks have no style sheet."""
    colors = {"error": "#c44e00", "warning": "#b97900", "note": "#0072b2"}
    svg = badge(level).replace("<svg ", f'<svg width="14" height="14" fill="{colors[level]}" ')
    return Markup(svg)
