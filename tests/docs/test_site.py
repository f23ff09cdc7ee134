"""The site in a real browser: widths, themes, console; its links, its search, its headings."""

import importlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from sonde.findings.catalogue import rule_classes

ROOT = Path(__file__).resolve().parents[2]
SOME = ("index", "install", "howto", "gallery", "faq", "howto/label_errors", "tutorials/tables",
        "methods/mahalanobis", "coming_from/captum", "symptoms")  # fmt: skip
WIDTHS = (400, 1000, 1600)


class Links(HTMLParser):
    """The targets of a page's links and pictures, and the ids that can be linked."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.ids |= {value for value in (held.get("id"), held.get("name")) if value}
        self.targets += [held[k] for k in ("href", "src") if held.get(k) and tag != "link"]


@pytest.mark.slow
def test_every_internal_link_has_a_target(site):
    pages = {}
    for path in site.rglob("*.html"):
        if "_static" in path.parts:  # a template of the theme
            continue
        pages[path.resolve()] = links = Links()
        links.feed(path.read_text("utf-8"))
    broken = []
    for path, links in pages.items():
        for target in set(links.targets):
            address, part = urldefrag(target)
            if urlparse(address).scheme or target == "#":
                continue
            there = (
                (path.parent / unquote(address).partition("?")[0]).resolve() if address else path
            )
            known = pages.get(there)
            if not there.exists() or (part and known and unquote(part) not in known.ids):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []
    assert len(pages) > 400


@pytest.mark.slow
def test_a_name_in_the_text_links_to_what_is_said_of_it(site):
    links = {
        "studies": ("#note-nac", "nac"),
        "howto/choose_a_layer": ("../reference/layers.html#hopfield", "Hopfield"),
        "reference/compress": ("#rtn", "RTN"),
        "methods/nac": ("../studies.html#study-nac", "sonde"),
    }
    for page, (target, name) in links.items():
        text = (site / f"{page}.html").read_text("utf-8")
        assert re.search(rf'href="{target}"><code[^>]*><span class="pre">{name}<', text), page


@pytest.mark.slow
def test_a_generated_page_has_its_folder_beside_it(site):
    beside = {"methods/mmd": "fourier_mmd", "findings/snd011": "snd034", "reference/edit": "train"}
    for page, other in beside.items():
        text = (site / f"{page}.html").read_text("utf-8")
        lists = text.partition('class="bd-docs-nav bd-links" aria-label="')[2].partition("</nav>")[
            0
        ]
        own = page.rpartition("/")[2]
        assert re.search(rf'class="current active"><a [^>]*href="{own}.html"', lists), page
        assert f'href="{other}.html"' in lists, page
        assert lists.count("<details open>") == 1, page


@pytest.mark.slow
def test_the_search_and_the_menu_leave_out_what_is_for_contributors(site):
    text = (site / "searchindex.js").read_text("utf-8")
    names = json.loads(
        re.search(r'docnames:(\[.*?\])|"docnames":\s*(\[.*?\])', text)[0].partition(":")[2]
    )
    assert "howto/label_errors" in names
    built = ("decisions", "measurements", "overview", "glossary", "contributing")
    assert [name for name in names if name.startswith(built)] == []
    menu = (
        (site / "index.html").read_text("utf-8").partition("<header")[2].partition("</header>")[0]
    )
    assert "howto.html" in menu
    assert not re.search(rf'href="({"|".join(built)})', menu)
    assert "contributing.html" in (site / "more.html").read_text("utf-8")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_stay_silent(site, width, theme):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    noise: list[str] = []

    def told(name, message):
        if message.type in ("error", "warning"):  # the theme logs which mode it took
            noise.append(f"{name}: {message.type}: {message.text}")

    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        for name in SOME:
            page = context.new_page()
            page.on("console", lambda m, n=name: told(n, m))
            page.on("pageerror", lambda e, n=name: noise.append(f"{n}: {e}"))
            page.goto((site / f"{name}.html").as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (name, wide)
            look = page.evaluate("getComputedStyle(document.body).backgroundColor")
            bright = sum(map(int, re.findall(r"\d+", look)[:3])) / 3
            assert (bright > 128) == (theme == "light"), (name, look)
            empty = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert page.evaluate(empty) == 0, name
            page.close()
        opened.close()
    assert noise == []


def test_pictures_are_small():
    shots = list((ROOT / "docs" / "_static").rglob("*.*"))
    assert sum(path.stat().st_size for path in shots) < 3_000_000


def test_symptoms_name_every_code(monkeypatch):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        symptoms = importlib.import_module("symptoms")
    finally:
        sys.path.remove(str(ROOT / "tools"))
    with monkeypatch.context() as patched:
        patched.setattr(rule_classes()["SND034"], "symptoms", ())
        with pytest.raises(ValueError, match="SND034"):
            symptoms.symptoms_page()
    assert "[Rows whose label is probably wrong](findings/snd034.md)" in symptoms.symptoms_page()
