"""Draws an altair chart as SVG that takes its colours from the page and carries its tooltips.

The picture is static: no runtime is shipped, nothing is evaluated, it prints and works without
scripts. Colours are CSS variables, so that light and dark need no second drawing; only the width
of a phone does. A mark's ``description`` becomes ``data-tip``, which the page's script shows.
"""

import re
from typing import Any, Final

import altair as alt
import vl_convert

from sonde.report._format import shown
from sonde.report._markup import Markup, el

WIDE: Final = 700
NARROW: Final = 312

OKABE_ITO: Final = tuple(f"var(--c{i})" for i in range(1, 9))
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
OCTAGON: Final = "M-.4,-1L.4,-1L1,-.4L1,.4L.4,1L-.4,1L-1,.4L-1,-.4Z"
MARKS: Final = {"error": OCTAGON, "warning": "triangle-up", "note": "circle"}

_DROPPED: Final = re.compile(
    r' (?:role|aria-roledescription|aria-hidden|pointer-events|font-family|class|opacity="1"|'
    r'stroke-miterlimit|xmlns|xmlns:xlink|version)(?:="[^"]*")?(?=[ />])'
)
_LONG: Final = re.compile(r"(\d+\.\d\d)\d+")
_ID: Final = re.compile(r'(id="|url\(#)([\w-]+)')


def picture(chart: Any, message: str, key: str, kind: str) -> Markup:
    """Return one drawing of a chart as an inline SVG element.

    Parameters
    ----------
    chart : altair chart
        Its marks carry ``description``.
    message : str
        What the picture says; its text alternative.
    key : str
        Unique on the page; keeps the ids of two drawings apart.
    kind : {"wide", "narrow", "both"}
        The widths of page that it is meant for.
    """
    spec = chart.to_dict()
    spec["config"] = {**spec.get("config", {}), **_config(narrow=kind == "narrow")}
    spec["background"] = None
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    head, body = re.match(r"<svg([^>]*)>(.*)</svg>\s*$", drawn, re.S).groups()  # type: ignore[union-attr]
    width, height = (
        round(float(re.search(rf' {n}="([\d.]+)"', head)[1])) for n in ("width", "height")
    )  # type: ignore[index]
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


def _slim(body: str, key: str) -> str:
    body = re.sub(
        r'<path class="(?:background|foreground)"[^>]*?d="(?:M0,0h0v0h0Z)?"[^>]*/>', "", body
    )
    body = _ID.sub(rf"\g<1>{key}-\g<2>", body)
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


def _config(narrow: bool) -> dict[str, Any]:
    size = 15 if narrow else 13
    text = {"labelFontSize": size, "titleFontSize": size, "labelColor": "var(--soft)"}
    text |= {"titleColor": "var(--soft)", "titleFontWeight": "normal"}
    axis = {"aria": False, "domainColor": "var(--line)", "tickColor": "var(--line)"}
    axis |= {"gridColor": "var(--grid)", "labelPadding": 6, "titlePadding": 8, "labelLimit": 140}
    return {
        "axis": axis | text,
        "axisX": {"grid": False},
        "legend": {"aria": False, "symbolSize": 90, "labelLimit": 180, "orient": "bottom"}
        | {"columns": 2 if narrow else 5, "title": None}
        | text,
        "view": {"stroke": None},
        "text": {"fontSize": size, "fill": "var(--soft)"},
        "range": {"category": list(OKABE_ITO)},
    }


def tip(*parts: str) -> str:
    """Return the lines of a tooltip as one text."""
    return " · ".join(shown(part, 120) for part in parts if part)


def x_sites(names: list[str], width: int, title: str, field: str = "s") -> alt.X:
    """Return the axis of sites in order of execution, with labels that do not meet."""
    longest = max(map(len, names), default=1)
    letter = 9 if width == NARROW else 8
    flat = longest * letter * len(names) <= width or longest <= 4
    room = width // (longest * letter + 8) if flat else width // 24
    step = max(1, -(-len(names) // max(room, 1)))
    axis = alt.Axis(values=names[::step], labelAngle=0 if flat else -50, title=title or None)
    return alt.X(f"{field}:N", sort=names, axis=axis, scale=alt.Scale(padding=0.5))
