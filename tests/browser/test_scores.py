"""The page of scores in a real browser: nothing outside is asked for, pictures are painted."""

import math
from pathlib import Path

import pytest
import torch

from browser_case import SIZES
from sonde.report._exhibits import exhibit
from sonde.report._heat import ColourScale
from sonde.report._markup import ElementIds, join
from sonde.report._page import page
from sonde.report.documents import to_page
from sonde.report.evaluate import evaluation
from sonde.run.scoring.exhibit import Exhibit

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    grid = [(i, j) for i in range(2) for j in range(2)]
    none = [None] * 4
    found = [
        Exhibit("image", range(4), [0.0, 1.0, 2.0, 9.0], none, grid, torch.rand(3, 32, 32)),
        Exhibit(
            "text", range(4), [0.0, 1.0, math.inf, 3.0], none, pieces=["a ", "b ", "<x>", "\n"]
        ),
        Exhibit(
            "steps", range(4), [0.0, 1.0, 2.0, 9.0], none, pieces=["add", "2", "and", "x" * 300]
        ),
    ]
    names = ElementIds()
    parts = [exhibit(one, ColourScale.of(one.score), 0.05, names) for one in found]
    path = tmp_path_factory.mktemp("scores") / "scores.html"
    path.write_text(page("Scores", "Scores", join(*parts), {}, {}), "utf-8")
    return path


def test_no_table_of_figures_hides_a_column_on_a_desk(opened, tmp_path) -> None:
    keys = ("auroc", "auroc_low", "auroc_high", "fpr_at_95tpr_unusual", "aupr", "false_alarms")
    rows = [
        dict.fromkeys((*keys, "found", "false_alarms_low", "false_alarms_high"), 0.12345)
        | {"instrument": "mahalanobis", "site": f"model.layers.{i}:out"}
        | {"n_usual": 8, "n_unusual": 40}
        for i in range(2)
    ]
    path = tmp_path / "evaluate.html"
    path.write_text(to_page(evaluation(rows, [], alpha=0.05, resamples=9)), "utf-8")
    table = opened(path, "desk").locator("#figures .scroll")
    assert table.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    assert table.inner_text().count("12.3 %") == 6


@pytest.mark.parametrize(("size", "theme"), [("phone", "dark"), ("desk", "light")])
def test_the_page_fits_and_is_painted(opened, page_file, size: str, theme: str) -> None:
    shown = opened(page_file, size, theme, painted=True)
    assert shown.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert shown.locator("svg.patches image").count() == 2
    inside = "svg => svg.getBoundingClientRect().width"
    assert shown.locator("svg.patches").first.evaluate(inside) == pytest.approx(224)
    warm = shown.locator(".tokens .h5, .tokens .h4").first
    ground = "e => getComputedStyle(e).backgroundColor"
    assert warm.evaluate(ground) not in ("rgba(0, 0, 0, 0)", "transparent")
    underline = "e => getComputedStyle(e).textDecorationLine"
    assert shown.locator(".tokens mark").first.evaluate(underline) == "underline"
    shown.locator(".tokens mark").first.hover()
    assert "score infinite" in shown.locator("#tip").inner_text()
    box = shown.locator("svg.patches").nth(1)
    box.focus()
    shown.keyboard.press("ArrowRight")
    assert "most anomalous patch" in shown.locator("#tip").inner_text()
