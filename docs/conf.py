"""Sphinx configuration; the pages of methods and findings are generated from the code first."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from make_docs import make_pages  # noqa: E402 (found in the folder that was just added)

project = "sonde"
author = "The sonde developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "sonde"
exclude_patterns = ["_build"]
nitpicky = True

make_pages(Path(__file__).resolve().parent)
