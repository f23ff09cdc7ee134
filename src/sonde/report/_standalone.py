"""Pictures as separate SVG files in the page's light colours, and as PNG."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import Any, Final, final

import vl_convert

from sonde.core.chart import SCHEMA, Chart
from sonde.core.errors import InputError
from sonde.files.durable import atomic_write
from sonde.files.places import to_path
from sonde.report._draw import clean, config
from sonde.report._fit import WIDE, fitted
from sonde.report._format import shown
from sonde.report._markup import el
from sonde.report._picture import Picture

SUFFIXES: Final = (".svg", ".png")
MOST_PIXELS: Final = 40_000_000
_COLOR: Final = re.compile(r"var\(--([\w-]+)\)")
_SIZE: Final = re.compile(r'<svg[^>]*? width="([\d.]+)"[^>]*? height="([\d.]+)"')


@final
class Svg(str):
    """The text of an SVG file; a notebook shows it, ``save`` writes it as SVG or PNG."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path, scale: float = 2.0) -> Path:
        """Write the picture as ``.svg`` or as ``.png``, by the name's ending.

        Parameters
        ----------
        path : path
        scale : float, default=2.0
            Pixels of a PNG for each unit of the SVG.

        Raises
        ------
        InputError
            If the name ends otherwise, or the PNG would have more than 40 million pixels.
        """
        path = to_path(path)
        check_picture_name(path)
        if path.suffix.lower() == ".svg":
            atomic_write(path, self.encode())
        else:
            atomic_write(path, png(self, scale))
        return path


def check_picture_name(path: Path) -> None:
    """Raise unless a name ends in ``.svg`` or ``.png``."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"Svg.save: expected a name that ends in .svg or .png, got {str(path)!r}.")


def png(svg: str, scale: float = 2.0) -> bytes:
    """Convert an SVG to the bytes of a PNG file."""
    match = _SIZE.search(svg)
    pixels = float(match[1]) * float(match[2]) * scale**2 if match else 0.0
    if not 0 < pixels <= MOST_PIXELS:
        raise InputError(
            f"png: expected a drawing of 1 to {MOST_PIXELS:,} pixels, got {pixels:,.0f} at "
            f"scale {scale:g}. Choose a smaller scale, or save it as SVG."
        )
    return bytes(vl_convert.svg_to_png(svg, scale=scale))


@cache
def palette() -> dict[str, str]:
    """Return the light colours of the page by name."""
    style = files("sonde.report").joinpath("assets", "report.css").read_text("utf-8")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-fA-F]{6})", style.partition("}")[0]))


def plain(text: str) -> str:
    """Replace the page's colour variables in a text by their values."""
    return _COLOR.sub(lambda match: palette()[match[1]], text)


def drawn(pictures: list[Picture], width: int = WIDE) -> Svg:
    """Return pictures below one another, each with its message as the title.

    Raises
    ------
    InputError
        If there is nothing to draw.
    """
    if not pictures:
        raise InputError("picture: expected something to draw, got no finite value.")
    parts = [_titled(picture, width) for picture in pictures]
    chart = clean(parts[0] if len(parts) == 1 else _stacked(parts))
    chart["config"] = {**chart.get("config", {}), **config(narrow=False)}
    chart["background"] = palette()["paper"]
    chart["padding"] = 16
    svg = vl_convert.vegalite_to_svg(_resolved(chart), allowed_base_urls=[])
    message = " ".join(f"{picture.message}." for picture in pictures)
    title = el("title", message)
    return Svg(re.sub(r"(<svg[^>]*>)", lambda m: f"{m[1]}{title}", svg, count=1))


def _stacked(parts: list[Chart]) -> Chart:
    """Return drawings below one another, each with its own scales."""
    apart = dict.fromkeys(("color", "shape", "x", "y"), "independent")
    bare = [{k: v for k, v in part.items() if k not in ("$schema", "config")} for part in parts]
    return {"$schema": SCHEMA, "vconcat": bare, "spacing": 36, "resolve": {"scale": apart}}


def _titled(made: Picture, width: int) -> Chart:
    lines = wrap(shown(made.message, 400), max(20, width // 9))
    look = {"anchor": "start", "fontSize": 15, "color": "var(--ink)", "offset": 12}
    return fitted(made.draw(width), width) | {"title": {"text": lines, "frame": "bounds", **look}}


def _resolved(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    return [_resolved(item) for item in value] if isinstance(value, list | tuple) else value
