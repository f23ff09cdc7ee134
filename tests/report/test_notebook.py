from sonde.report import to_mime, to_text


def test_a_notebook_gets_both_kinds_without_a_script(report) -> None:
    report["findings"][0]["title"] = "<script>alert(1)</script>"
    made = to_mime(report)
    assert set(made) == {"text/html", "text/plain"}
    assert made["text/plain"] == to_text(report)
    assert "<script" not in made["text/html"]
    assert "&lt;script&gt;" in made["text/html"]
    assert made["text/html"].count("<details open") == 4, "errors and warnings are open"
    assert len(made["text/html"]) < 20_000
