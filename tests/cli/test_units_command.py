"""``sonde units``: a page of all units, and what is refused."""

import json

import pytest

from sonde.tap.streams.live import LiveStream


@pytest.mark.slow
def test_units_of_a_site_are_written_and_read(run, tmp_path):
    path = tmp_path / "atlas.html"
    words = ("units", "sonde:digits", "sonde:digits/test", "--limit", 40)
    site = ("--sites", "vit.layers.1")
    ran = run(*words, *site, "-o", path, "--clamp", 3, "--exemplars", 4)
    assert ran.code == 0, ran.err
    assert "64 units at vit.layers.1:out over 640 rows" in ran.out
    text = path.read_text("utf-8")
    found = json.loads(text.partition('id="sonde">')[2].partition("</script>")[0])
    assert found["schema"] == "sonde-units/1"
    assert found["inputs"]
    assert ["clamped" in unit for unit in found["units"][:4]] == [True, True, True, False]
    named = {name for name, _ in found["units"][0]["clamped"]["up"]}
    assert named < {str(i) for i in range(10)}
    for unit in found["units"][:3]:
        assert all(rise > 0 for _, rise in unit["clamped"]["up"])
        assert all(fall < 0 for _, fall in unit["clamped"]["down"])
    names = {row["l"] for row in found["units"][5]["rows"]}
    assert names < {str(i) for i in range(10)}
    best = [row for row in found["units"][5]["rows"] if row["r"] == "top"]
    assert len(best) == 4
    assert all(str(row["e"]) in found["inputs"] and 0 <= row["p"] < 16 for row in best)
    assert sum(found["units"][5]["histogram"]["counts"]) == 640
    plain = run(*words, *site, "--json", "--clamp", 0, "--no-inputs").json()
    assert not plain["inputs"]
    assert "t" not in plain["units"][0]["rows"][0]
    assert "expected one site" in run(*words).error()
    assert "ends in .html" in run(*words, *site, "-o", tmp_path / "atlas.pdf").error()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_page(run, tmp_path, monkeypatch):
    words = ("units", "sonde:digits", "sonde:digits/test", "--limit", 40, "--unit-size", 8)
    words = (*words, "--sites", "vit.layers.1", "--clamp", 0)
    whole, path = tmp_path / "whole.json", tmp_path / "atlas.json"
    assert run(*words, "-o", whole).code == 0
    batches, read = LiveStream.batches, []

    def stopping(stream, start, stop):
        if start >= 24:
            raise KeyboardInterrupt
        read.append(start)
        yield from batches(stream, start, stop)

    monkeypatch.setattr(LiveStream, "batches", stopping)
    stopped = run(*words, "-o", path)
    assert stopped.code == 130
    assert not path.exists()
    monkeypatch.undo()
    assert "nothing to resume" in run(*words, "-o", tmp_path / "other.json", "--resume").error()
    assert run(*words, "-o", path, "--resume").code == 0
    assert json.loads(path.read_text())["units"] == json.loads(whole.read_text())["units"]
    assert [p.name for p in tmp_path.iterdir()] == sorted([path.name, whole.name])


@pytest.mark.slow
def test_two_workers_make_the_same_page(run, tmp_path):
    words = ("units", "sonde:digits", "sonde:digits/test", "--limit", 40, "--unit-size", 8)
    words = (*words, "--sites", "vit.layers.1", "--clamp", 0)
    pages = [tmp_path / "none.json", tmp_path / "two.json"]
    assert run(*words, "--threads", 1, "-o", pages[0]).code == 0
    assert run(*words, "--workers", 2, "-o", pages[1]).code == 0
    none, two = (json.loads(page.read_text())["units"] for page in pages)
    assert none == two
