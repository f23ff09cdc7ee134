"""The dashboard of a server in a browser: what is wrong is told first, and nothing is cut."""

import pytest

from served_process import body_of, running
from serving_case import net, probe, rows

pytestmark = pytest.mark.browser
CUT = """() => [...document.querySelectorAll("main *")].filter((e) => e.clientWidth > 0
  && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
  .map((e) => e.tagName + e.id)"""
BROKEN_IDS = """() => [...document.querySelectorAll("#alarms td[data-title=id]")]
  .filter((e) => e.getClientRects().length && e.clientHeight > 40).length"""


@pytest.mark.truth("the changes, refusals and alarms that were sent")
def test_the_dashboard_says_what_is_wrong_and_cuts_nothing(browser, tmp_path):
    probe(net()).save(tmp_path / "p.sonde")
    with running(tmp_path / "p.sonde", "--log", tmp_path / "log") as server:

        def opened(width):
            page = browser.new_page(viewport={"width": width, "height": 800})
            noise = []
            page.on("console", lambda message: noise.append(message.text))
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.get_by_text("live, times in").wait_for()
            assert noise == []
            return page

        for seed in range(8):
            server.ask("/predict", body_of(30, seed))
        page = opened(1280)
        assert page.inner_text("#said") == "All is well"
        page.close()
        for seed in range(60):
            far = [x.tolist() for x in rows(5, 50 + seed, shift=4.0)]
            assert server.ask("/predict", {"inputs": far})[0] == 200
            assert server.ask("/predict", {"inputs": [["no number"]]})[0] == 400
        assert server.ask("/predict", {"inputs": [far[0], ["no number"]]})[0] == 200
        for width in (1280, 420):
            page = opened(width)
            assert "need a look" in page.inner_text("#said")
            told = page.inner_text("#problems")
            assert "The traffic has changed since" in told
            assert "raised an alarm" in told
            assert "60 of the" in told
            assert "1 input of answered requests got an error" in told
            assert "status 400, an input that the model cannot read: 1 since" in told
            assert page.evaluate("[' the', '', 'a b'].map(visible)") == ['" the"', '""', "a b"]
            assert page.locator("#verdict").bounding_box()["y"] < 200
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(CUT) == []
            assert page.evaluate(BROKEN_IDS) == 0
            shown = page.locator("#alarms tr:has(td)")
            assert shown.count() == 10
            page.click("#alarms-more")
            assert shown.count() == 50
            page.close()
        page = opened(1280)
        page.click("#problems button")
        page.locator("#problems button").wait_for(state="detached")
        assert server.ask("/changes")[1]["events"][-1]["ended_by"] == "acknowledged"
        page.close()
