"""The page and the text of a change: verdict, four numbers, untrusted texts."""

import json
import re

import pytest

from page_case import Page
from sonde.core.errors import InputError
from sonde.report.documents import save_document, to_page, to_terminal
from sonde.run.changing.edit_document import edit_document
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.judge import Difference, Judgement


def document(effect=1.0, controls=(0.0, 0.1, -0.1), size=2.0, damage=0.05):
    by_side = {"docs": Difference(effect, 0.1, 20), "<b>code</b>": Difference(0.0, 0.1, 20)}
    loss = Difference(damage, 0.01, 30)
    judged = Judgement(Difference(effect, 0.14, 40), by_side, loss, loss, size, controls)
    return edit_document(
        "steer",
        judged,
        model="<i>mine</i>",
        method="steering_vector",
        places=["h.1:out"],
        target="docs over code",
        output="new",
        tables=[EditTable("Probes later", ("site", "accuracy"), (("h.2:out", 0.75),))],
        samples=[{"prompt": "def f", "before": "<script>x", "after": "doc"}],
    )


def verdict(found):
    return to_terminal(found, quiet=True)


def test_the_verdict_says_whether_random_changes_do_the_same():
    assert "nats, significantly larger than with random changes" in verdict(document())
    assert "not significantly larger than with random changes" in verdict(document(effect=0.1))
    assert verdict(document(controls=())) == "docs over code: +1 nats"


def test_text_and_page_hold_the_same_figures_and_no_markup_of_others():
    found = document(size=5.0, damage=0.7)
    text, html = to_terminal(found), to_page(found)
    assert "too large: it moves states by 5" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"-> sonde edit undo new -o new-undone", text)
    page = Page(html)
    assert {a.get("id") for a in page.all("section")} == {"numbers", "more", "samples", "undo"}
    for raw in ("<i>mine", "<b>code", "<script>x"):
        assert raw not in html
    carried = re.search(r'<script type="application/json" id="sonde">([^<]*)</script>', html)
    assert carried is not None
    assert json.loads(carried[1]) == found


def test_an_act_that_only_reads_has_a_page(tmp_path):
    found = edit_document(
        "find-backdoor", None, model="m", method="x", places=[], target="", notes=["no backdoor"]
    )
    page = save_document(found, tmp_path / "a.html").read_text()
    assert "no backdoor" in page
    assert 'id="numbers"' not in page
    with pytest.raises(InputError, match=r"\.html or \.json"):
        save_document(found, tmp_path / "a.txt")
