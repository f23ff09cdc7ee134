"""Print the cheat sheet on two pages: ``python tools/cheat_sheet.py cheat_sheet.pdf``.

Chromium draws the page docs/cheat_sheet.md, without the site around it.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
STYLE = """
@page { size: A4; margin: 11mm }
body { font: 12px/1.35 sans-serif }
h1 { font-size: 20px; margin: 0 } h2 { font-size: 14px; margin: 10px 0 2px; break-after: avoid }
p { margin: 3px 0 } pre { background: #f2f4f7; padding: 4px; margin: 3px 0; white-space: pre-wrap;
  font: 10.5px/1.35 monospace; break-inside: avoid } code { font-family: monospace }
table { border-collapse: collapse } td, th { border-top: 1px solid #ccc; padding: 1px 4px;
  text-align: left; vertical-align: top }
"""


def page() -> str:
    """Return the cheat sheet as HTML without links."""
    text = (ROOT / "docs" / "cheat_sheet.md").read_text("utf-8")
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    body = MarkdownIt().enable("table").render(text)
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{body}"


def main() -> None:
    """Write the PDF."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "cheat_sheet.pdf").resolve()
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "page.html"
        drawn.write_text(page(), encoding="utf-8")
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        words += [f"--user-data-dir={folder}/profile", f"--print-to-pdf={output}"]
        subprocess.run(["chromium", *words, drawn.as_uri()], check=True, capture_output=True)
    n_pages = len(re.findall(rb"/Type\s*/Page\b", output.read_bytes()))
    print(f"{output}: {n_pages} pages")


if __name__ == "__main__":
    main()
