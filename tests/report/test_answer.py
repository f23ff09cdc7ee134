"""The answer of a recipe in a notebook: its sentence, its table with text cells, its picture."""

from sonde.core import Result, bars
from sonde.report import Answer


def answer(**more):
    drawn = bars("Share", [{"arm": "a", "share": 0.5}], "share", "arm")
    rows = ({"arm": "a <b>", "share": 0.25}, {"arm": "c", "share": None})
    return Answer(question="Which?", sentence="It is a & c.", verdict="a", rows=rows, drawn=drawn,
                  value=0.5, n=4, **more)  # fmt: skip


def test_a_notebook_shows_the_sentence_the_table_and_the_picture():
    shown = answer()._repr_mimebundle_()
    assert shown["text/plain"] == "a: It is a & c."
    assert "It is a &amp; c." in shown["text/html"]
    assert "<td>a &lt;b&gt;</td><td>0.25</td>" in shown["text/html"]
    assert shown["application/vnd.vegalite.v5+json"]["title"] == "Share"


def test_any_result_with_cells_of_text_is_shown():
    found = Result._repr_mimebundle_(answer())
    assert "<td>a &lt;b&gt;</td><td>0.25</td>" in found["text/html"]
    assert "<td>c</td><td></td>" in found["text/html"]
