"""A real browser that opens pages which must stay silent."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser_case import SIZES


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Open pages that must stay silent: no console message, no error, no dialog, no request.

    With ``painted`` a page may draw images that stand in it.
    """
    contexts, noise = [], []

    def go(
        path: Path, size: str = "desk", theme: str = "light", painted: bool = False, **more: Any
    ) -> Any:
        own = (path.as_uri(), "data:image/") if painted else (path.as_uri(),)
        width, height = SIZES[size]
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, color_scheme=theme, **more)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (noise.append("dialog"), dialog.dismiss()))
        asked = lambda request: noise.append(f"request: {request.url}")  # noqa: E731
        page.on(
            "request", lambda r: None if r.url == own[0] or r.url.startswith(own[1:]) else asked(r)
        )
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert noise == []
