"""Sphinx configuration; pages of methods, findings and notebooks are generated first."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent / "tools"), str(DOCS.parent)]

# All are found in the folders that were just added.
from folder_pages import add_groups  # noqa: E402
from make_docs import make_pages  # noqa: E402
from name_links import link_names  # noqa: E402
from search_words import BothSpellings, SiteBuilder  # noqa: E402

project = "sonde"
author = "The sonde developers"
extensions = ["myst_nb", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks carry their output; tests run them
nb_mime_priority_overrides = [("html", "image/svg+xml", 0)]
suppress_warnings = ["mystnb.unknown_mime_type"]  # a chart beside a table: the table is shown
html_theme = "pydata_sphinx_theme"
highlight_language = "none"  # a block without a language is a command, not Python
html_title = "sonde"
html_static_path = ["_static"]
html_search_scorer = str(DOCS / "search_scorer.js")
html_css_files = ["site.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "sonde"},
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "show_nav_level": 1,
    "navigation_depth": 2,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
templates_path = ["_templates"]
BARE = ("index", "install", "gallery", "faq", "decisions/*", "measurements/*", "papers", "studies")
GENERATED = ("methods/*", "findings/*", "reference/*")
html_sidebars = {page: [] for page in BARE} | {page: ["folder_pages.html"] for page in GENERATED}
exclude_patterns = ["_build"]
nitpicky = True


def setup(app: Sphinx) -> None:
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", add_groups)
    app.add_search_language(BothSpellings)
    app.add_builder(SiteBuilder, override=True)


make_pages(DOCS)
