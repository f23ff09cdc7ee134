"""Draw a chart as SVG with the page's colours and with tooltips.

The picture is static: no runtime is shipped, nothing is evaluated, it prints and works without
scripts. Colours are CSS variables, so that light and dark need no second drawing; only the width
of a phone does. A mark's ``description`` becomes ``data-tip``, which the page's script shows.
"""

import re
from typing import Any, Final

import vl_convert

from sonde.core.chart import Chart
from sonde.report._fit import NARROW, OKABE_ITO, STYLES, WIDE, fitted
from sonde.report._format import shown
from sonde.report._markup import Markup, el

_DROPPED: Final = re.compile(
    r' (?:role|aria-roledescription|aria-hidden|pointer-events|font-family|class|opacity="1"|'
    r'stroke-miterlimit|xmlns|xmlns:xlink|version)(?:="[^"]*")?(?=[ />])'
)
_LONG: Final = re.compile(r"(\d+\.\d\d)\d+")
_ID: Final = re.compile(r'(id="|url\(#)([\w-]+)')


def picture(chart: Chart, message: str, key: str, kind: str) -> Markup:
    """Return one drawing of a chart as an inline SVG element.

    Parameters
    ----------
    chart : dict
        As ``sonde.core.chart`` describes it.
    message : str
        What the picture says; its text alternative.
    key : str
        Unique on the page; keeps the ids of two drawings apart.
    kind : {"wide", "narrow", "both"}
        The widths of page that it is meant for.
    """
    spec = fitted(chart, NARROW if kind == "narrow" else WIDE)
    spec["config"] = {**spec.get("config", {}), **config(narrow=kind == "narrow")}
    spec["background"] = None
    drawn = vl_convert.vegalite_to_svg(clean(spec), allowed_base_urls=[])
    head, body = _found(r"<svg([^>]*)>(.*)</svg>\s*$", drawn).groups()
    width, height = (
        round(float(_found(rf' {n}="([\d.]+)"', head)[1])) for n in ("width", "height")
    )
    return el(
        "svg",
        Markup(_slim(body, key)),
        cls=f"plot {kind}",
        role="img",
        tabindex="0",
        aria_label=message,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
    )


def _found(pattern: str, drawn: str) -> re.Match[str]:
    match = re.search(pattern, drawn, re.S)
    if match is None:
        raise ValueError(f"picture: expected an SVG drawing, got {drawn[:60]!r}.")
    return match


def clean(value: Any) -> Any:
    """Return a chart specification without characters that XML forbids."""
    if isinstance(value, str):
        return shown(value, 1000)
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def _slim(body: str, key: str) -> str:
    body = re.sub(
        r'<path class="(?:background|foreground)"[^>]*?d="(?:M0,0h0v0h0Z)?"[^>]*/>', "", body
    )
    numbered: dict[str, str] = {}
    body = _ID.sub(lambda m: m[1] + numbered.setdefault(m[2], f"{key}-{len(numbered)}"), body)
    # Texts of the chart stand in attributes and elements with < > & " escaped, so that no pattern
    # below can cut through one.
    body = "".join(
        _tag(part) if part.startswith("<") else part for part in re.split(r"(<[^>]*>)", body)
    )
    return re.sub(r"<g></g>|<g/>", "", body)


def _tag(tag: str) -> str:
    tip = re.search(r' aria-label="([^"]*)"', tag)
    tag = re.sub(r' aria-label="[^"]*"', " \0" if tip else "", tag)
    tag = _LONG.sub(r"\1", _DROPPED.sub("", tag))
    return tag.replace(" \0", f' data-tip="{tip[1]}"' if tip else "")


def config(narrow: bool) -> dict[str, Any]:
    """Return the style of axes, legends and texts."""
    size = 15 if narrow else 13
    text = {"labelFontSize": size, "titleFontSize": size, "labelColor": "var(--soft)"}
    text |= {"titleColor": "var(--soft)", "titleFontWeight": "normal"}
    axis = {"aria": False, "domainColor": "var(--line)", "tickColor": "var(--line)"}
    axis |= {"gridColor": "var(--grid)", "labelPadding": 6, "titlePadding": 8, "labelLimit": 140}
    return {
        "axis": axis | text,
        "axisX": {"grid": False},
        "legend": {"aria": False, "symbolSize": 90, "labelLimit": 180, "orient": "bottom"}
        | {"columns": 3 if narrow else 7, "columnPadding": 18, "title": None}
        | text,
        "view": {"stroke": None},
        "text": {"fontSize": size, "fill": "var(--soft)"},
        "mark": {"color": "var(--c1)"},
        "point": {"filled": True, "size": 46, "opacity": 1},
        "line": {"strokeWidth": 2},
        "rule": {"color": "var(--c1)"},
        "style": STYLES,
        "range": {"category": list(OKABE_ITO)},
    }
