"""Pictures of report pages as a reader sees them: ``python tools/shots.py REPORT.html [-o shots]``.

Each page is opened in a real browser at two sizes and in two themes; one PNG of the whole page and
one for each section at desktop size is written.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
THEMES = ("light", "dark")
TOP = (1000, 1860)


def chromium() -> str | None:
    """Return the path of the system's browser, or None if it is missing."""
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@contextmanager
def browser() -> Iterator[Any]:
    """Open the system's browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def shots(page_file: Path, folder: Path, *, sections: bool = True) -> list[Path]:
    """Write the pictures of one page and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with browser() as opened:
        for name, (width, height) in SIZES.items():
            for theme in THEMES:
                size = {"width": width, "height": height}
                page = opened.new_page(viewport=size, color_scheme=theme)
                page.goto(page_file.resolve().as_uri())
                target = folder / f"{page_file.stem}-{name}-{theme}.png"
                page.screenshot(path=target, full_page=True)
                written.append(target)
                if sections and name == "desk" and theme == "light":
                    for part in page.locator("header, section").all():
                        key = part.get_attribute("id") or "header"
                        target = folder / f"{page_file.stem}-{key}.png"
                        part.screenshot(path=target)
                        written.append(target)
                page.close()
    return written


def top(page_file: Path, target: Path) -> Path:
    """Write a picture of what a reader of a page sees first, as the README shows it."""
    with browser() as opened:
        width, height = TOP
        page = opened.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        page.screenshot(path=target)
    with Image.open(target) as picture:  # a third of the bytes, and every release carries it
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(target, optimize=True)
    return target


def main() -> int:
    """Write pictures of every page that was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("-o", "--folder", type=Path, default=Path("shots"))
    parser.add_argument("--top", type=Path, help="write only the top of the first page here")
    options = parser.parse_args()
    if chromium() is None:
        print("no chromium found: install it, then try again", file=sys.stderr)
        return 2
    if options.top is not None:
        print(top(options.pages[0], options.top))
        return 0
    for page in options.pages:
        for path in shots(page, options.folder):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
