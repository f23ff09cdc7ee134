"""Print what NAC tells of unusual images, by the share of the rows that its grid spans.

It fits ``NAC`` at each block of ``sonde:digits`` on ``train`` and
scores ``test`` against uniform noise, negatives, and images turned by 90 degrees. Figures are
AUROCs: with nine tenths of the typical unit's rows inside the grid, and with ``alpha="auto"``.
"""

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from tools.figures._table import Table

import sonde
from sonde.core import SondeWarning
from sonde.data import Digits
from sonde.detect import NAC
from sonde.engine import Running
from sonde.stats import LogHistogram
from sonde_studies._separation import area, fitted_on, scores_of

NINE_TENTHS = 0.9
BLOCKS = tuple(f"vit.layers.{i}" for i in range(4))
READING: dict[str, Any] = {"objective": "kl_uniform"}

Line = tuple[str, dict[str, tuple[float, float]]]


def lines(sites: Sequence[str] = BLOCKS, n: int | None = None) -> list[Line]:
    """Return, for each site, both figures of each unusual kind; from ``n`` images of each part."""
    model = sonde.load("sonde:digits")
    train, usual = (
        [row["image"] for row in islice(Digits(part).rows(), n)] for part in ("train", "test")
    )
    kinds, found = unusual_images(usual), []
    for site in sites:
        steep = steepness(model, train, site, NINE_TENTHS)
        wide = [_areas(model, train, usual, kinds, site, NAC(alpha=a)) for a in (steep, "auto")]
        found.append((site, {kind: (wide[0][kind], wide[1][kind]) for kind in kinds}))
    return found


def unusual_images(images: Iterable[Image.Image], seed: int = 0) -> dict[str, list[Image.Image]]:
    """Return as many images of each unusual kind."""
    draw, pixels = np.random.default_rng(seed), [np.asarray(image) for image in images]
    kinds = {
        "noise": [draw.integers(0, 256, p.shape, dtype=np.uint8) for p in pixels],
        "negatives": [255 - p for p in pixels],
        "turned": [np.rot90(p).copy() for p in pixels],
    }
    return {kind: [Image.fromarray(p) for p in many] for kind, many in kinds.items()}


def steepness(model: Any, items: Any, site: str, share: float) -> float:
    """Return the ``alpha`` whose grid spans a share of the rows in the typical living unit."""
    running = Running(LogHistogram(("x", "grad")))
    for batch in sonde.read(model, items, sites=site, **READING):
        (key,) = batch.rows
        running.update(batch.rows[key], grad=batch.grad[key])
    state: Any = running.state
    reach = state.quantile(share, absolute=True)
    return 2.0 / float(reach[reach > 0].median())


def _areas(
    model: Any, train: Any, usual: Any, kinds: dict[str, Any], site: str, detector: NAC
) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # that the narrow grid is covered
        probe = fitted_on(model, train, detector, sites=site, **READING)
        (normal,) = scores_of(probe, model, usual).values()
        odd = {k: scores_of(probe, model, images) for k, images in kinds.items()}
    return {kind: area(normal, *scores.values()) for kind, scores in odd.items()}


def text(found: Sequence[Line]) -> str:
    """Return the table in Markdown."""
    kinds = list(found[0][1])
    head = "".join(f" {kind}, nine tenths | auto |" for kind in kinds)
    rows = [
        f"| {site} |" + "".join(f" {a:.2f} | {b:.2f} |" for a, b in each.values())
        for site, each in found
    ]
    shown = [f"| block |{head}", "|---" * (1 + 2 * len(kinds)) + "|", *rows]
    return "\n".join(shown).replace(" 0.", " .")


def table() -> Table:
    """Print the table."""
    yield text(lines())
