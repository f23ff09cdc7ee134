import re

import pytest

from page_case import Page
from sonde.report import to_html, to_text
from sonde.report._first_screen import first_finding, first_screen

WRONG = {"confidence": 0.9, "right": False, "group": None, "findings": {}, "loss": 3.0}
TRIED = {"change": "x", "measure": "accuracy", "before": 0.3, "after": 0.9, "n_rows": 60, "p": 0.0}


def _finding(code: str, level: str, **more):
    usual = {"title": f"title of {code}", "sentence": f"What {code} saw.", "effect": 0.5}
    usual |= {"because_of": None, "ignored": False, "theme": "labels", "next": "", "fix": ""}
    return usual | {"code": code, "level": level} | more


@pytest.mark.slow
def test_answers_cause_fix_and_worst_inputs_come_before_all_else(report) -> None:
    cause = first_finding(report)
    assert cause is not None
    cause["fix"] = (
        "Call model.eval() after the weights are loaded: correct on 98 % instead of 27 %."
    )
    report["cause"], cause["trial"] = cause["code"], TRIED
    text = to_text(report, width=200)
    names = ("answers  ", "cause    ", "fix      ", "worst    ")
    at = [text.index(f"\n{name}") for name in names]
    at += [found.start() for found in re.finditer(r"^\d+ errors? ", text, re.M)][:1]
    at.append(text.index(f"ERROR    {cause['code']}"))
    assert at == sorted(at)
    assert text.count(cause["sentence"]) == 1
    assert text.count(cause["next"]) == 1
    page = to_html(report)
    marks = ('class="large"', 'class="why"', "correct on 98", "Worst inputs", 'id="findings"')
    found = [page.replace("\u00a0", " ").index(mark) for mark in marks]
    assert found == sorted(found)
    assert page.index('id="findings"') < page.index('id="measured"')


@pytest.mark.truth("widths of the bars over their room, by hand")
def test_the_large_figure_stands_beside_a_probe_and_the_commonest_label(report) -> None:
    site = {"site": "layers.7:out", "value": 0.8, "se": 0.01}
    answers = {"measure": "accuracy", "value": 0.35, "low": 0.3, "high": 0.41, "chance": 0.1}
    answers |= {"commonest": 0.2, "last": site, "best": site, "per_byte": None, "n_rows": 211}
    made = first_screen(report | {"answers": answers | {"confusion": None}})
    assert made is not None
    seen = Page(made)
    assert seen.texts["b"][0].replace("\u00a0", " ") == "35 %"
    widths = [int(r["width"] or 0) for r in seen.all("rect") if r["class"] == "part"]
    rooms = [int(r["width"] or 0) for r in seen.all("rect") if r["class"] == "room"]
    parts = [w / room for w, room in zip(widths, rooms, strict=True)]
    assert parts == pytest.approx([0.35, 0.8, 0.2], abs=0.01)
    assert "30 % to 41 %" in made.replace("\u00a0", " ")
    assert "linear probe at layers.7" in made


def test_a_cause_is_about_answers_if_any_is_and_never_a_note(report) -> None:
    other = _finding("SND041", "warning", theme="data", effect=0.9)
    mine, note = _finding("SND065", "warning", effect=0.1), _finding("SND034", "note", effect=1.0)
    assert first_finding({"findings": [other, mine, note]}) == mine
    assert first_finding({"findings": [other, note]}) == other
    assert first_finding({"findings": [note]}) is None
    error = _finding("SND002", "error", theme="run")
    assert first_finding({"findings": [mine, error]}) == error
    assert first_finding({"findings": [mine | {"because_of": "SND041"}, other]}) == other


@pytest.mark.slow
def test_what_was_not_tried_is_neither_a_cause_nor_a_fix(report) -> None:
    first = first_finding(report)
    assert first is not None
    text, page = to_text(report, width=200), to_html(report).replace("\u00a0", " ")
    assert "\ncause    no cause found" in text
    assert f"\nseen     {first['code']}" in text
    assert "No cause found" in page
    unjudged = to_text(report | {"answers": None}, width=200)
    assert "no cause found" not in unjudged
    assert "\ncause    no cause was searched for" in unjudged
    for word in ("\nfix ", "fix:", "because of", "the cause that"):
        assert word not in text, word
    assert "Fix" not in page.split('id="rows"')[0]
    other = next(f for f in report["findings"] if f["level"] != "note" and f is not first)
    report["cause"], other["trial"] = other["code"], TRIED
    assert first_finding(report) == other


def test_without_answers_and_findings_there_is_no_first_screen(bare) -> None:
    assert first_screen(bare) is None
    text = to_text(bare)
    assert "cause" not in text
    assert "worst" not in text


def test_a_worst_input_is_shown_and_cannot_carry_markup(report) -> None:
    rows = report["rows"]["answers"]
    worst = next(row for row in rows if row["right"] is False)
    worst["input"] = "<script>alert(1)</script>"
    worst["truth"] = "<b>x</b>"
    made = first_screen(report)
    assert made is not None
    assert "<script>" not in made
    assert "&lt;b&gt;x&lt;/b&gt; called" in made
