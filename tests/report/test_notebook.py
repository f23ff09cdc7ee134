import pytest

from sonde.report import Report, to_mime, to_text


def test_a_notebook_gets_both_kinds_without_a_script(report) -> None:
    report["findings"][0]["title"] = "<script>alert(1)</script>"
    made = to_mime(report)
    assert set(made) == {"text/html", "text/plain"}
    assert made["text/plain"] == to_text(report)
    assert "<script" not in made["text/html"]
    assert "&lt;script&gt;" in made["text/html"]
    assert made["text/html"].count("<details open") == 4, "errors and warnings are open"
    assert "<svg" in made["text/html"].partition("Depth profile")[2]
    assert len(made["text/html"]) < 100_000


@pytest.mark.slow
def test_findings_and_figures_are_at_hand(report, tmp_path) -> None:
    made = Report(report)
    first = made.findings[0]
    assert (first.code, first.rows) == (report["findings"][0]["code"], first["rows"])
    figures = made.figures
    assert len(figures) > 5
    assert all(svg.startswith("<svg") for svg in figures.values())
