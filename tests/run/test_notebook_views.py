"""What a call returns draws itself in a notebook."""

import inspect
import typing
from dataclasses import fields, is_dataclass

import pytest

import sonde
from sonde.core._shown import document_html, document_line


def returned() -> dict[str, type]:
    """Return the result classes with a document, by the function that returns them."""
    found = {}
    for name in sonde.__all__:
        made = getattr(sonde, name)
        kind = typing.get_type_hints(made).get("return") if inspect.isfunction(made) else None
        if is_dataclass(kind) and "document" in {f.name for f in fields(kind)}:
            found[name] = kind
    return found


def test_functions_with_a_document_are_found():
    assert {"steer", "explain_answers", "compress_model", "trace_texts"} <= set(returned())


@pytest.mark.parametrize("name", [*sorted(returned()), "compare", "drift"])
def test_its_result_has_a_view(name):
    kind = typing.get_type_hints(getattr(sonde, name))["return"]
    assert hasattr(kind, "_repr_html_") or hasattr(kind, "_repr_mimebundle_")


def test_a_document_shows_single_values_and_rows_and_escapes_them():
    found = {
        "schema": "sonde-edit/1", "model": "<b>", "damage": 0.25, "missing": None, "is_fine": True,
        "sites": [{"site": "a & b", "size": 2, "held": [1]}, {"site": "c", "size": 3.5, "held": 2}],
        "names": ["x"], "nested": {"a": 1},
    }  # fmt: skip
    shown = document_html("Change", found)
    assert "<b>&lt;" not in shown
    assert "&lt;b&gt;" in shown
    assert "<td>0.25</td>" in shown
    assert "<td>True</td>" in shown
    assert "a &amp; b" in shown
    assert "<td>3.5</td>" in shown
    for hidden in ("schema", "missing", "held", "nested", "names"):
        assert hidden not in shown


def test_a_result_prints_in_one_line():
    found = {"schema": "s", "model": "m", "text": "x" * 500, "n": 3, "rows": [{"a": 1}] * 99}
    assert document_line("Change", found) == "Change(model=m, n=3)"
    for name, kind in returned().items():
        assert kind.__repr__.__module__ == kind.__module__, name  # not that of dataclass
        assert "document_line" in inspect.getsource(kind.__repr__), name
