"""The page of `sonde evaluate` and its drawings, against the numbers they are made of."""

import base64
import hashlib
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from page_case import Page
from sonde.core.errors import InputError
from sonde.report.documents import to_page
from sonde.report.evaluate import evaluation, pictures_of, save_evaluation
from sonde.run.scoring.curves import curves
from sonde.run.scoring.evaluate import evaluate

pytestmark = pytest.mark.slow

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&amp;\u202e"


def table(scores, site="model.layers.0:out", instrument="knn", calibrated=True):
    n = len(scores)
    p = [None] * n
    if calibrated:
        p = [0.01 if s is None or s > 2 else 0.5 for s in scores]
    return pa.table({
        "id": [f"r{i}" for i in range(n)],
        "position": [0] * n,
        "site": [site] * n,
        "instrument": [instrument] * n,
        "score": pa.array(scores, pa.float64()),
        "p": pa.array(p, pa.float64()),
    })  # fmt: skip


def evaluated(usual, unusual, name="usual.parquet"):
    options: dict[str, Any] = {"alpha": 0.05, "resamples": 20}
    rows, drawn = evaluate(usual, unusual, **options), curves(usual, unusual, **options)
    return evaluation(rows, drawn, **options, usual=name, unusual=f"un{name}")


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    sites = [f"model.layers.{k}:out" for k in range(2)]
    tables = [
        pa.concat_tables(
            table(rng.normal(size=n) + shift * k, site) for k, site in enumerate(sites)
        )
        for n, shift in ((60, 0), (40, 1.5))
    ]
    return evaluated(*tables)


@pytest.fixture(scope="module")
def page(found):
    return to_page(found)


def test_the_page_is_whole_and_needs_nothing_else(page):
    seen = Page(page)
    assert seen.open == []
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in seen.tags:
        assert "style" not in attrs
        for name in ("src", "href", "xlink:href"):
            assert str(attrs.get(name, "#")).startswith(("#", "data:,"))
    policy = str(next(m["content"] for m in seen.all("meta") if "http-equiv" in m))
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


def test_every_picture_says_what_it_shows_to_those_who_hear_the_page(page):
    plots = [a for a in Page(page).all("svg") if "plot" in str(a.get("class"))]
    assert len(plots) == 2 * 5  # AUROC by site; histogram and curve of either site; two widths
    assert all(a["role"] == "img" and a["aria-label"] and a["tabindex"] == "0" for a in plots)


@pytest.mark.truth("numpy counts of the scores in the page's own bins")
def test_bars_and_table_hold_the_counts(found, page):
    bins = found["curves"][1]["histogram"]
    said = re.findall(r'data-tip="([^"]*) · unusual (\d+) · ', page)
    counts = [c for curve in found["curves"] for c in curve["histogram"]["counts_unusual"] if c]
    assert sorted(int(n) for _, n in said) == sorted(2 * counts)
    assert sum(bins["counts_usual"]) == 60
    assert f"threshold at a false-alarm rate of 5 %, {bins['threshold']:.2f}" in page


@pytest.mark.truth("the JSON that went in")
def test_the_page_carries_its_numbers(found, page):
    text = re.search(r'<script type="application/json" id="sonde">(.*?)</script>', page, re.S)
    assert text is not None
    carried = json.loads(text[1])
    assert carried["rows"] == found["rows"]
    assert {c["site"] for c in carried["curves"]} == {c["site"] for c in found["curves"]}


@pytest.mark.truth("points of the curve, mapped onto the axes of the drawing")
def test_the_drawn_curve_goes_through_the_points(found):
    (_, roc, _) = pictures_of(found)
    spec = roc.draw(480)
    curve = max(found["curves"], key=lambda c: c["site"])["roc"]
    rows = max((v["data"]["values"] for v in spec["layer"]), key=lambda v: "i" in v[0])
    assert [(r["x"], r["v"]) for r in rows] == list(zip(curve["fpr"], curve["tpr"], strict=True))


def test_the_page_names_its_tables_and_says_that_the_best_was_chosen(found, page):
    assert "60 of usual.parquet" in page
    assert "40 of unusual.parquet" in page
    chosen = "chosen on these same rows, so its scores are optimistic"
    assert f"best of 2 detectors and sites was {chosen}" in page
    assert "optimistic because it was chosen on these rows" in pictures_of(found)[-1].message
    alone = to_page(evaluated(table([0.0, 1.0]), table([2.0])))
    assert "optimistic" not in alone


def test_hostile_names_stay_text():
    both = [table(s, HOSTILE, HOSTILE) for s in ([0.0, 1.0, 1.5], [1.0, 3.0])]
    page = to_page(evaluated(*both, name=HOSTILE))
    seen = Page(page)
    assert seen.open == []
    assert seen.all("img") == []
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert "\u202e" not in page


@pytest.mark.parametrize(
    ("usual", "unusual"),
    [
        ([0.0], [1.0]),
        ([None, None], [None]),
        ([1.0, 1.0], [1.0]),
        ([0.0, math.inf], [3.0, None]),
        ([1e-3, 2e-3, 1e-3], [1e9, 2.0]),
    ],
)
def test_few_equal_and_infinite_scores_give_a_page(usual, unusual, tmp_path):
    found = evaluated(table(usual), table(unusual, calibrated=True))
    page = to_page(found)
    assert Page(page).open == []
    assert ("All scores are infinite" in page) == (usual == [None, None])
    save_evaluation(found, tmp_path / "e.svg")


def test_svg_and_png_files(found, tmp_path):
    svg = save_evaluation(found, tmp_path / "e.svg").read_text("utf-8")
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "best at layers.1" in str(root[0].text)
    assert "optimistic" in svg
    for part in (
        "Fraction of out-of-distribution rows detected",
        "Scores of usual rows and unusual rows",
        "threshold",
    ):
        assert part in svg
    assert "var(--" not in svg
    image = Image.open(io.BytesIO(save_evaluation(found, tmp_path / "e.png").read_bytes()))
    assert image.format == "PNG"
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    assert image.size == pytest.approx((2 * wide, 2 * high), abs=2)
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        save_evaluation(found, tmp_path / "e.pdf")
