"""Pictures from Python: SVG text that a parser reads, with the numbers in it."""

import base64
import io
import math
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sonde.core.errors import InputError
from sonde.report import pictures
from sonde.report._heat import STEPS
from sonde.report._standalone import palette
from sonde.stats import score_map

HOSTILE = "</svg><script>alert(1)</script>&\x00\u202e"


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter() if e.text]


def test_numbers_along_the_scores_do_not_meet():
    scores = np.linspace(100, 1080, 50)
    marks = ET.fromstring(pictures.histogram(scores, scores)).iter(
        "{http://www.w3.org/2000/svg}text"
    )
    ticks = [e for e in marks if "21)" in e.attrib["transform"] and e.attrib["opacity"] == "1"]
    place = [float(e.attrib["transform"].split("(")[1].split(",")[0]) for e in ticks]
    half = [4 * len(e.text or "") for e in ticks]
    assert len(ticks) > 5
    assert all(
        b - a >= left + right
        for a, b, left, right in zip(place, place[1:], half, half[1:], strict=False)
    )


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
    with pytest.raises(InputError, match="expected rows of both labels"):
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
    rows: list[dict[str, Any]] = [
        dict(zip(names, (f"h.{k}:out", value, low, None, "knn"), strict=True))
        for k, (value, low) in enumerate(values)
    ]
    svg = pictures.auroc_by_site(rows, "knn")
    assert any("best at h.1, AUROC 0.9" in text for text in texts(svg))


@pytest.mark.truth("score_map, blended by hand over the grey image")
def test_heat_map_pixels():
    grid = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    scores = torch.tensor([0.0, 0.0, 1.0, 4.0])
    image = torch.linspace(0, 1, 16).reshape(4, 4)
    svg = pictures.heat_map(image, scores, grid, low=0.0, high=4.0)
    root = ET.fromstring(svg)
    first, second = (e for e in root.iter() if e.tag.endswith("image"))
    plain, over = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(e.attrib["href"].split(",")[1]))))
        for e in (first, second)
    )
    want = score_map(scores.double(), grid, size=(224, 224)).numpy()[..., None] / 4 * 0.82
    grey = np.kron(np.rint(image.numpy() * 255), np.ones((56, 56)))[..., None]
    np.testing.assert_allclose(plain, np.repeat(grey, 3, axis=2), atol=1)
    blended = grey * (1 - want) + np.array([213, 94, 0]) * want
    np.testing.assert_allclose(over, np.rint(blended), atol=1.5)
    box = [e for e in root.iter() if e.attrib.get("data-tip")]
    assert [(b.attrib["x"], b.attrib["y"]) for b in box] == [("368.0", "112.0")]
    assert "line 2, column 2" in texts(svg)[0]


def test_heat_map_of_infinite_and_equal_scores(tmp_path):
    for scores in ([math.inf, 0.0], [math.inf] * 2, [1.0, 1.0]):
        svg = pictures.heat_map(None, scores, [[0, 0], [0, 1]])
        assert svg.save(tmp_path / "h.png").stat().st_size > 100
    with pytest.raises(InputError, match="NaN"):
        pictures.heat_map(None, [math.nan], [[0, 0]])
    with pytest.raises(InputError, match="1 or 3 channels"):
        pictures.heat_map(torch.zeros(2, 4, 4), [1.0], [[0, 0]])


def test_tokens_are_escaped_marked_and_told():
    pieces = ["a ", HOSTILE, "b\n", "c" * 200]
    svg = pictures.tokens(pieces, [0.0, 9.0, 1.0, math.inf], [0.9, 0.01, 0.5, 0.2])
    root = ET.fromstring(svg)
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    assert "\u202e" not in svg
    said = texts(svg)
    assert "1: score 9, p 0.01, marked" in said
    assert "3: score infinite, p 0.2" in said
    bold = [e.text or "" for e in root.iter() if e.attrib.get("font-weight") == "bold"]
    assert "".join(bold).startswith("</svg><script>")
    assert float(root.attrib["width"]) < 800


@pytest.mark.truth("ranks by numpy")
def test_colours_are_ranks():
    scores = np.random.default_rng(0).permutation(200) ** 3.0
    svg = pictures.tokens([f"{i} " for i in range(200)], scores)
    counts = [svg.count(f'fill="{color}"') for name, color in palette().items() if name[:1] == "h"]
    above = [int((scores > np.quantile(scores, q, method="lower")).sum()) for q in STEPS]
    assert counts == list(-np.diff([*above, 0]))


def test_blanks_of_tokens_are_kept_where_svg_would_drop_them():
    svg = pictures.tokens([" body", "the ", "a b"], [0.0, 1.0, 2.0])
    words = [node.text for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]
    assert words == ["\u00a0body", "the\u00a0", "a\u00a0b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(([], []), "at least one"), ((["a"], [1.0, 2.0]), "each piece"), ((["a"], [math.nan]), "NaN")],
)
def test_tokens_refuses(arguments, said):
    with pytest.raises(InputError, match=said):
        pictures.tokens(*arguments)


def test_steps_have_lines_of_their_own():
    svg = pictures.tokens(["add 2 3", "5"], [0.1, 3.0], own_lines=True)
    lines = [e.attrib["y"] for e in ET.fromstring(svg).iter() if e.tag.endswith("}text")]
    assert lines == ["25", "55"]


def test_a_patch_that_is_infinitely_unusual_is_named_so():
    made = pictures.heat_map(None, [0.0, math.inf], [[0, 0], [0, 1]])
    assert "the most anomalous, infinite, lies in line 1, column 2" in made


def test_tokens_that_do_not_fit_are_counted():
    short = pictures.tokens(["line\n"] * 300, [0.0] * 300)
    assert "not drawn" not in short
    long = pictures.tokens(["line\n"] * 500, [0.0] * 500)
    assert long.count(">line") == 401
    assert "99 more parts not drawn" in long
