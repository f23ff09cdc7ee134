"""The page in a real browser: two sizes, two themes, no console message, no request."""

import json
from pathlib import Path
from typing import Any

import pytest

from browser_case import SIZES
from sonde.report import diff_to_html, to_html
from sonde.report.html import SECTIONS

pytestmark = pytest.mark.browser

EXAMPLE = Path(__file__).parents[1] / "report" / "example.json"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAA"
    "AABJRU5ErkJggg=="
)
HOSTILE = "</script><img src=x onerror=alert(1)><svg onload=alert(2)>"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads(EXAMPLE.read_text("utf-8"))


@pytest.fixture(scope="module")
def page_file(report, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(report), "utf-8")
    return path


def unfold(page: Any) -> None:
    """Open what folds below the first screen."""
    page.locator("#measured > details > summary").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_everything_is_there(opened, page_file, size: str, theme: str) -> None:
    page = opened(page_file, size, theme)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    for key in SECTIONS.keys() - {"versus_model"}:
        assert page.locator(f"section#{key}").is_visible()
    wide, narrow = (page.locator(f"svg.plot.{kind}") for kind in ("wide", "narrow"))
    shown, hidden = (narrow, wide) if size == "phone" else (wide, narrow)
    assert shown.count() == hidden.count() == 16
    assert all(plot.is_visible() for plot in shown.all())
    assert not any(plot.is_visible() for plot in hidden.all())
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 250, 248)"
    assert dark == (theme == "dark")


def test_no_table_of_checks_hides_a_column_on_a_desk(opened, page_file) -> None:
    page = opened(page_file, "desk")
    unfold(page)
    page.locator("#checks details.more > summary").click()
    assert page.locator("#checks .scroll").evaluate("e => e.scrollWidth - e.clientWidth") <= 0


# Text that is too faint: its contrast after WCAG 2.2, from the colours that the browser computed.
FAINT = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parse(c).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; const p = parse(c);
    if (p.length < 4 || p[3] > 0) return c; } return "rgb(255,255,255)"; };
  // What a text in a cell of a picture stands on: the last filled mark around its middle.
  const cell = (e) => {
    const t = e.getBoundingClientRect(), x = t.x + t.width / 2, y = t.y + t.height / 2;
    return [...(e.closest("svg")?.querySelectorAll("path[data-tip]") ?? [])].filter((p) => {
      const b = p.getBoundingClientRect();
      return b.left < x && x < b.right && b.top < y && y < b.bottom;
    }).map((p) => getComputedStyle(p).fill).filter((c) => c.startsWith("rgb(")).pop();
  };
  const out = [];
  for (const e of document.querySelectorAll("main *, button")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest(".anchor")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest("svg") ? style.fill : style.color), light(cell(e) ?? back(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push(`${e.tagName} ${e.getAttribute("class")} ${ratio.toFixed(2)}`);
  }
  return [...new Set(out)];
}"""

# Text smaller than 15 px as it is drawn, and things to touch that are lower than 44 px.
SMALL = """() => {
  const out = [];
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility()) continue;
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const svg = e.closest("svg[viewBox]");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(getComputedStyle(e).fontSize) * scale;
    if (own && size < 14.9) out.push(`${e.tagName} ${e.textContent.slice(0, 20)} ${size}`);
    if (e.matches("button, summary") && e.getBoundingClientRect().height < 43.9) {
      out.push(`target ${e.tagName} ${e.textContent}`);
    }
  }
  return out;
}"""


@pytest.mark.truth("contrast after WCAG 2.2, from computed colours")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(opened, page_file, theme: str) -> None:
    assert opened(page_file, "desk", theme).evaluate(FAINT) == []


def test_text_and_targets_are_large_enough_for_a_phone(opened, page_file) -> None:
    assert opened(page_file, "phone").evaluate(SMALL) == []


def test_drawers_open_by_keyboard_and_the_focus_can_be_seen(opened, page_file) -> None:
    page = opened(page_file)
    drawer = page.locator("article details.how").first
    drawer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert drawer.get_attribute("open") is not None
    assert drawer.get_by_text("Rule: rms difference").is_visible()
    page.keyboard.press("Space")
    assert drawer.get_attribute("open") is None
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_tables_and_commands_are_copied(opened, page_file, report) -> None:
    page = opened(page_file)
    unfold(page)
    page.evaluate("navigator.clipboard.writeText = async (t) => { window.copied = t; }")
    command = page.locator("article button[data-copy]").first
    command.click()
    assert page.evaluate("window.copied") == report["findings"][0]["next"]
    assert command.inner_text() == "Copied"
    page.locator("#depth .tools button").first.click()
    head, first = page.evaluate("window.copied").split("\n")[:2]
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    figures = report["sites"][0]["values"]
    assert cells["site"] == "model.layers.0:out"
    assert float(cells["spread"]) == figures["spread"]["value"]
    assert float(cells["spread se"]) == figures["spread"]["se"]
    page.locator("button[data-json]").click()
    assert json.loads(page.evaluate("window.copied")) == report


def test_a_picture_is_copied_as_what_it_shows(opened, report, tmp_path) -> None:
    shown = {**json.loads(json.dumps(report)), "shows_inputs": True}
    shown["rows"]["far"][0]["input"] = PIXEL
    path = tmp_path / "report.html"
    path.write_text(to_html(shown), "utf-8")
    page = opened(path)
    page.evaluate("navigator.clipboard.writeText = async (t) => { window.copied = t; }")
    table = page.evaluate("document.querySelector('img.thumb').closest('table').id")
    page.evaluate(f"document.querySelector('button[data-csv=\"{table}\"]').click()")
    page.wait_for_function("window.copied")
    head, first = page.evaluate("window.copied").split("\n")[:2]
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    assert cells["input"] == "the input"


def test_tooltips_follow_pointer_and_arrow_keys(opened, page_file) -> None:
    page = opened(page_file)
    unfold(page)
    tip = page.locator("#tip")
    assert not tip.is_visible()
    plot = page.locator("#depth svg.plot.wide").nth(1)
    plot.locator("[data-tip]").nth(3).hover()
    assert tip.inner_text().startswith("model.layers.3:out\n")
    page.keyboard.press("Escape")
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("model.layers.0:out\n")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("model.layers.1:out\n")
    page.keyboard.press("Tab")
    assert not tip.is_visible()


def test_the_choice_of_theme_is_remembered(opened, page_file) -> None:
    page = opened(page_file, theme="light")
    button = page.locator("#theme")
    assert button.inner_text() == "Dark"
    button.click()
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert button.inner_text() == "Light"


def test_pictures_have_a_text_in_their_place(opened, page_file) -> None:
    page = opened(page_file)
    for picture in page.locator("svg[role=img]").all():
        assert len(picture.get_attribute("aria-label") or "") > 8
    for table in page.locator("table").all():
        assert table.locator("thead th[scope=col]").count() > 0
        assert table.locator("tbody th[scope=row]").count() > 0


def test_paper_shows_what_drawers_hold(opened, page_file) -> None:
    page = opened(page_file)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("details:not([open])").count() == 0
    assert page.get_by_text("Rule: rms difference").is_visible()
    assert not page.locator("#theme").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("article details[open]").count() == 0


def test_the_page_needs_no_script_and_obeys_reduced_motion(opened, page_file) -> None:
    page = opened(page_file, java_script_enabled=False)
    unfold(page)
    assert page.locator("#depth svg.plot.wide").first.is_visible()
    page = opened(page_file, reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


@pytest.fixture(scope="module")
def hostile_file(report, tmp_path_factory) -> Path:
    spoiled = json.loads(json.dumps(report).replace("model.layers.7:out", "x" * 300))
    name = f"{HOSTILE}{'very/long/path/' * 12}"
    spoiled["provenance"]["model"]["name"] = spoiled["provenance"]["data"]["name"] = name
    spoiled["findings"][0] |= {"title": HOSTILE, "sentence": HOSTILE * 3, "next": "y" * 400}
    spoiled["findings"][2]["rows"] = [HOSTILE, "z" * 300]
    spoiled["rows"]["far"][0]["id"] = HOSTILE
    far = {"id": HOSTILE, "label": HOSTILE, "x": 40.0, "y": 40.0}
    spoiled["rows"]["map"]["points"][0] |= far
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(to_html(spoiled), "utf-8")
    return path


@pytest.mark.parametrize(("size", "kind"), [("phone", "narrow"), ("desk", "wide")])
def test_hostile_names_do_nothing_and_long_ones_fit(opened, hostile_file, size, kind) -> None:
    page = opened(hostile_file, size)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.locator("img").count() == 0
    page.locator(f"#rows svg.plot.{kind} [data-tip]").first.hover()
    assert HOSTILE[:20] in page.locator("#tip").inner_text()


def test_the_difference_of_two_reports_is_as_quiet(opened, report, tmp_path) -> None:
    other = json.loads(json.dumps(report).replace("my-model", "my-model-2"))
    del other["findings"][0]
    path = tmp_path / "diff.html"
    path.write_text(diff_to_html(report, other), "utf-8")
    for size in SIZES:
        page = opened(path, size)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        assert page.get_by_text("gone", exact=True).first.is_visible()
