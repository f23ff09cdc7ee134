"""Pictures from Python: SVG text that a parser reads, with the numbers in it."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sonde.core.errors import InputError
from sonde.report import pictures

HOSTILE = "</svg><script>alert(1)</script>&\x00\u202e"


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter() if e.text]


@pytest.mark.truth("numpy.histogram")
def test_histogram():
    rng = np.random.default_rng(0)
    usual, unusual = rng.normal(size=50), rng.normal(size=30) + 3
    svg = pictures.histogram(usual, unusual, 2.5, title=HOSTILE, bins=10)
    root = ET.fromstring(svg)
    said = [e.attrib["aria-label"] for e in root.iter() if " · " in e.attrib.get("aria-label", "")]
    edges = np.histogram_bin_edges(np.concatenate([usual, unusual]), 10)
    for kind, scores in (("usual", usual), ("unusual", unusual)):
        counts = [c for c in np.histogram(scores, edges)[0] if c]
        mine = [s.split(f"· {kind} ")[1].split(" ")[0] for s in said if f"· {kind} " in s]
        assert [int(n) for n in mine] == counts
    assert "threshold · 2.5" in said
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    assert "var(--" not in svg
    assert svg._repr_html_() == svg._repr_svg_() == str(svg)


def test_what_cannot_be_drawn_is_refused(tmp_path):
    for values in ([], [math.inf]):
        with pytest.raises(InputError, match="no finite value"):
            pictures.histogram(values)
    with pytest.raises(InputError, match="without NaN"):
        pictures.histogram([math.nan])
    with pytest.raises(InputError, match="usual and unusual rows"):
        pictures.roc([0.0, 1.0], [1, 1])
    with pytest.raises(InputError, match="no finite value"):
        pictures.auroc_by_site([], "knn")
    svg = pictures.histogram([1.0])
    with pytest.raises(InputError, match="pixels"):
        svg.save(tmp_path / "a.png", scale=1000)


@pytest.mark.truth("AUROC by hand: 3.5 of 4 pairs in order")
def test_roc_names_its_area():
    svg = pictures.roc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], resamples=20)
    assert any("AUROC 0.875 (" in text for text in texts(svg))


def test_auroc_by_site():
    names = ("site", "auroc", "auroc_low", "auroc_high", "instrument")
    values = ((0.6, 0.5), (0.9, 0.8), (None, None))
    rows = [
        dict(zip(names, (f"h.{k}:out", value, low, None, "knn"), strict=True))
        for k, (value, low) in enumerate(values)
    ]
    svg = pictures.auroc_by_site(rows, "knn")
    assert any("best at h.1, AUROC 0.9" in text for text in texts(svg))
