"""The page of a drift in a real browser: it fits, is painted, speaks to the keyboard and copies."""

from pathlib import Path

import pytest
import torch

from browser_case import SIZES
from sonde.core.stream import Stream
from sonde.detect import UnitShift
from sonde.measure import Covariance
from sonde.report.documents import save_document
from sonde.run.comparing.drift import drift
from sonde.run.comparing.drift_document import drift_document
from sonde.run.fitting.fit import fit

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    sides = []
    for seed in (0, 1):
        rows = torch.randn(150, 6, generator=torch.Generator().manual_seed(seed))
        rows[:, 2] += 2.0 * seed
        sites = {f"model.layers.{i}.a_long_name_of_a_module:out": rows * (i + 1) for i in range(5)}
        sides.append(fit([Covariance(), UnitShift()], Stream.of(sites), progress=False))
    found = drift_document(drift(*sides), *sides)
    return save_document(found, tmp_path_factory.mktemp("drift") / "drift.html")


@pytest.mark.parametrize(("size", "theme"), [("phone", "dark"), ("desk", "light")])
def test_the_page_fits_and_is_painted(opened, page_file, size: str, theme: str) -> None:
    shown = opened(page_file, size, theme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert "5 of 5 sites moved" in shown.locator(".verdict").inner_text()
    drawn = shown.locator("figure.picture svg:visible")
    assert drawn.count() == 4
    for picture in drawn.all():
        box = picture.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size][0]
    mark = shown.locator("#where svg:visible [data-tip]").first
    mark.hover()
    assert "adjusted p" in shown.locator("#tip").inner_text()
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(v) for v in ground[4:-1].split(",")[:3]) > 384
    assert light == (theme == "light")
    assert shown.locator("#comparisons tbody tr").count() >= 35
