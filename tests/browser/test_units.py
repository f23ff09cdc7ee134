"""The atlas in a real browser: it fits a phone, is searched, fills drawers when they open."""

from pathlib import Path

import pytest
import torch

from browser_case import SIZES
from sonde.core.stream import Stream
from sonde.report.documents import save_document
from sonde.run.explaining.atlas import atlas_document, fit_atlas

pytestmark = pytest.mark.browser

MANY = 400
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    rows = torch.randn(300, MANY, generator=torch.Generator().manual_seed(0))
    label = (rows[:, 7] > 1.5).long()
    atlas = fit_atlas(Stream.of({"layers.1": rows}, label=label), progress=False)
    wanted = {(*one.ids, one.position) for unit in range(MANY) for one in atlas.exemplars.of(unit)}
    text = ["what came before this ", HOSTILE, " and what came behind it"]
    seen = {
        key: {"e": i, "p": key[2], "t": text, "l": "cat"} for i, key in enumerate(sorted(wanted))
    }
    found = atlas_document(atlas, model="net", data="rows", seen=seen)
    found["units"][7].update(concept="loud words", labelled=True)
    return save_document(found, tmp_path_factory.mktemp("units") / "atlas.html")


@pytest.mark.parametrize(("size", "theme"), [("phone", "dark"), ("desk", "light")])
def test_units_are_found_and_opened(opened, page_file, size: str, theme: str) -> None:
    page = opened(page_file, size, theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.locator("#unit-count").inner_text() == f"{MANY} of {MANY}"
    page.locator("#unit-search").fill("loud")
    assert page.locator("#unit-count").inner_text() == f"1 of {MANY}"
    drawer = page.locator("#unit-list > details:visible")
    assert drawer.count() == 1
    assert drawer.locator(".inside > *").count() == 0
    assert drawer.locator("summary mark").inner_text() == HOSTILE  # shown before it is opened
    drawer.locator("summary").click()
    drawer.locator("svg.unit-histogram").wait_for()
    assert "overlap" in drawer.inner_text()
    best = drawer.locator("ol").first.locator("li")
    assert best.count() == 8
    assert best.first.locator("mark").inner_text() == HOSTILE
    bar = drawer.locator("svg.unit-histogram rect").nth(20)
    bar.hover()
    assert "rows" in page.locator("#tip").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert "cat · input" in best.first.inner_text()
    page.locator("#unit-search").fill("")
    page.locator("#unit-order").select_option("max")
    units = page.evaluate("JSON.parse(document.getElementById('sonde').textContent).units")
    best_unit = max(units, key=lambda unit: unit["max"])["unit"]
    first = page.locator("#unit-list > details").first
    assert first.get_attribute("data-unit") == str(best_unit) != "0"
    page.locator("#unit-search").fill("399")
    # Not inner_text: what was out of sight has none before the next frame (content-visibility).
    found = page.locator("#unit-list > details:visible summary").text_content()
    assert found is not None
    assert found.startswith("unit 399")


def test_five_thousand_features_stay_small(page_file) -> None:
    frame = 60_000
    assert (page_file.stat().st_size - frame) / MANY * 5000 + frame < 20_000_000
