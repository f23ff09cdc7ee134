"""``sonde compare``: text, page, and what is refused."""

import pytest


@pytest.mark.slow
def test_the_command_prints_and_writes(run, tmp_path):
    path = tmp_path / "compare.html"
    words = ("compare", "sonde:digits", "sonde:digits", "sonde:digits/test", "--limit", 64)
    ran = run(*words, "-o", path)
    assert ran.code == 0, ran.err
    assert "Every state is the same" in ran.out
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert "feature arrays" in run("compare", "-", "sonde:digits", "sonde:digits/test").error()
