"""Scores of patches over an image: the image, a grey copy with a heat map, and a legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from sonde.data.pixels import as_bytes, as_png
from sonde.report._format import number, score_words
from sonde.report._markup import Markup, el, join
from sonde.stats import score_map

SIDE: Final = 224
GAP: Final = 16
WARM: Final = (213, 94, 0)
MOST_OPAQUE: Final = 0.82
STEPS: Final = (0.6, 0.75, 0.88, 0.95, 0.99)


@final
@dataclass(frozen=True)
class ColourScale:
    """Range of scores between no colour and full colour.

    Patches go from ``low`` to ``high`` evenly; tokens and steps by the quantiles ``steps``, since
    one token often lies far above all others.
    """

    low: float
    high: float
    steps: tuple[float, ...] = ()

    @staticmethod
    def of(scores: Sequence[float]) -> "ColourScale":
        """Return the scale from the median to the largest of the finite scores."""
        finite = np.array([s for s in scores if math.isfinite(s)])
        if not len(finite):
            return ColourScale(0.0, 1.0, (math.inf,) * len(STEPS))
        low, high = float(np.median(finite)), float(finite.max())
        every = np.quantile(finite, STEPS, method="lower")
        steps = tuple(float(v) for v in every)
        return ColourScale(low, high if high > low else low + max(abs(low), 1.0), steps)


@final
@dataclass(frozen=True)
class Heat:
    """A heat map: its panels as PNG, the box of the most unusual patch, and a message."""

    image: Markup | None
    over: Markup
    box: tuple[float, float, float, float]
    width: float
    height: float
    message: str


def heat(pixels: Tensor | None, grid: Any, scores: Sequence[float], scale: ColourScale) -> Heat:
    """Return the heat map of one image's patches.

    Parameters
    ----------
    pixels : Float[Tensor, "channel line column"] or None
        As the model reads it, any range; None draws the map alone.
    grid : sequence of (int, int)
        Line and column of each patch.
    scores : sequence of float
    scale : ColourScale
    """
    places = torch.as_tensor(grid)
    lines, columns = (int(n) + 1 for n in places.max(0).values)
    ratio = lines / columns if pixels is None else pixels.shape[-2] / pixels.shape[-1]
    width, height = (SIDE, SIDE * ratio) if ratio <= 1 else (SIDE / ratio, SIDE)
    size = max(lines, round(height)), max(columns, round(width))
    values = score_map(torch.as_tensor(scores, dtype=torch.float64), places, size=size)
    grey = None if pixels is None else as_bytes(pixels, size)
    best = max(range(len(scores)), key=lambda i: scores[i])
    line, column = (int(n) for n in places[best])
    box = (
        column * width / columns, line * height / lines, width / columns, height / lines,
    )  # fmt: skip
    words = (
        f"Scores of {lines} x {columns} patches; the most anomalous, {score_words(scores[best])}, "
    )
    words += f"lies in line {line + 1}, column {column + 1}"
    over = Markup(as_png(_blended(grey, values.numpy(), scale)))
    return Heat(None if grey is None else Markup(as_png(grey)), over, box, width, height, words)


def _blended(image: np.ndarray | None, scores: np.ndarray, scale: ColourScale) -> np.ndarray:
    shares = np.where(np.isfinite(scores), scores, np.inf)
    shares = np.clip((shares - scale.low) / (scale.high - scale.low), 0, 1)[..., None]
    base = np.full((*scores.shape, 3), 255.0)
    if image is not None:
        base = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    weight = MOST_OPAQUE * shares
    return np.rint(base * (1 - weight) + np.array(WARM) * weight).astype(np.uint8)


def panels(made: Heat, x: float = 0.0) -> list[Markup]:
    """Return the image, if available, and the heat map with its box, each as an SVG group."""
    whole: dict[str, Any] = {"width": made.width, "height": made.height}
    groups = []
    if made.image is not None:
        groups.append(el("image", href=made.image, x=x, y=0, **whole))
        x += made.width + GAP
    left, top, width, height = made.box
    place: dict[str, Any] = {
        "x": left + x,
        "y": top,
        "width": width,
        "height": height,
        "fill": "none",
    }
    tip = f"most anomalous patch · {made.message.partition('; ')[2]}"
    box = [
        el("rect", **place, stroke="#ffffff", stroke_width=4),
        el("rect", **place, stroke="#000000", stroke_width=1.5, data_tip=tip),
    ]
    groups.append(el("g", el("image", href=made.over, x=x, y=0, **whole), *box))
    return groups


def legend(scale: ColourScale, key: str, x: float = 0.0, y: float = 0.0) -> Markup:
    """Return the colour bar with the scores at its ends."""
    stops = [
        el("stop", offset=t, stop_color=f"rgb{WARM}", stop_opacity=MOST_OPAQUE * t) for t in (0, 1)
    ]
    name = f"{key}-fade"
    ends = ((0, scale.low, "start"), (SIDE, scale.high, "end"))
    return join(
        el("defs", el("linearGradient", *stops, id=name)),
        el("rect", x=x, y=y, width=SIDE, height=14, fill="#ffffff"),
        el("rect", x=x, y=y, width=SIDE, height=14, fill=f"url(#{name})", stroke="#59606a"),
        *(
            el("text", number(value), x=x + at, y=y + 32, text_anchor=how, font_size=15,
               fill="var(--soft)")
            for at, value, how in ends
        ),
    )  # fmt: skip
