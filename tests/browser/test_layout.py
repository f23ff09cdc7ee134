"""Where things stand on the page, at two sizes: boxes, which no font's rasteriser can move far."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sonde.report import to_html

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "report" / "example.json"
GOLDEN = HERE / "layout.json"
TOLERANCE = 0.06
SIZES = ("desk", "phone")
# Relative to the width of the page: x, width; and the height in widths, of what a reader sees.
BOXES = """() => {
  const wide = document.documentElement.clientWidth;
  const out = {};
  const all = [...document.querySelectorAll("header, section, article, figure.picture")];
  for (const [i, e] of all.entries()) {
    if (!e.checkVisibility()) continue;
    const b = e.getBoundingClientRect();
    const name = `${i} ${e.tagName.toLowerCase()} ${e.id}`.trim();
    out[name] = [b.x, b.width, b.height].map((v) => v / wide);
  }
  return out;
}"""


@pytest.fixture(scope="module")
def page_files(tmp_path_factory) -> dict[str, Path]:
    files = {kind: tmp_path_factory.mktemp(kind) / "page.html" for kind in pages()}
    for kind, report in pages().items():
        files[kind].write_text(to_html(report), "utf-8")
    return files


def pages() -> dict[str, dict[str, Any]]:
    """Return the whole example, and the same without a finding."""
    report = json.loads(EXAMPLE.read_text("utf-8"))
    verdict = {**report["verdict"], "error": 0, "warning": 0, "note": 0, "ignored": 0}
    quiet = {**report, "findings": [], "versus": None, "verdict": verdict}
    quiet |= {"measures": [], "not_measured": []}  # nobody asked for any
    return {"found": report, "quiet": quiet}


@pytest.mark.truth("layout.json, a page whose pictures were looked at")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["found", "quiet"])
def test_everything_stands_where_it_stood(opened, page_files, kind: str, size: str) -> None:
    found = opened(page_files[kind], size).evaluate(BOXES)
    key = f"{kind} {size}"
    golden = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    if os.environ.get("SONDE_NEW_LAYOUT"):  # after a look at the pictures: tools/shots.py
        golden[key] = {k: [round(v, 3) for v in box] for k, box in found.items()}
        GOLDEN.write_text(json.dumps(golden, indent=0, sort_keys=True) + "\n", "utf-8")
    assert set(found) == set(golden[key])
    for name, box in found.items():
        assert box == pytest.approx(golden[key][name], rel=TOLERANCE, abs=0.01), name


def test_nothing_found_fits_little_more_than_two_screens(browser, page_files) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(page_files["quiet"].as_uri())
    height = page.evaluate("document.documentElement.scrollHeight")
    page.close()
    assert height <= 2.25 * 800  # 1,733: accuracy and the worst inputs stand first


def test_long_class_names_stay_inside_the_page(opened, tmp_path) -> None:
    report = pages()["found"]
    table = report["answers"]["confusion"]
    long = {name: f"{name} " + "of-a-very-long-kind-" * 5 for name in table["labels"]}
    for side in ("labels", "answers"):
        table[side] = [long[name] for name in table[side]]
    for pair in table["pairs"]:
        pair |= {k: long[pair[k]] for k in ("label", "predicted")}
    path = tmp_path / "page.html"
    path.write_text(to_html(report), "utf-8")
    page = opened(path, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    drawn = page.locator("#answers svg.narrow")
    left = drawn.evaluate("e => e.getBoundingClientRect().left")
    texts = drawn.locator("text").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().left)"
    )
    assert min(texts) >= left - 1
