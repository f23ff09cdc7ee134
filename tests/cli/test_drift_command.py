"""``sonde drift``: text, JSON, page, gate, sizes, and everything that may be wrong."""

import json

import pytest


@pytest.fixture(scope="module")
def fits(place, tmp_path_factory):
    from cli_case import run_words

    folder = tmp_path_factory.mktemp("drift")
    for name, rows in (("a", "rows"), ("b", "other"), ("p", "plain"), ("m", "more")):
        data = place / f"{rows}.npz"
        ran = run_words("fit", "covariance", "-", data, "-o", folder / f"{name}.sonde", "--quiet")
        assert ran.code == 0, ran.err
    narrow = folder / "narrow.sonde"
    assert run_words("fit", "hotelling", "-", place / "narrow.npz", "-o", narrow).code == 0
    return folder


@pytest.mark.slow
def test_what_moved_in_text_json_and_page(run, fits):
    page = fits / "drift.html"
    ran = run("drift", fits / "a.sonde", fits / "b.sonde", "-o", page)
    assert ran.code == 0, ran.err
    assert "2 of 2 sites moved at level 0.05" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80 + len(str(fits))
    found = run("drift", fits / "a.sonde", fits / "b.sonde", "--json").json()
    assert found["schema"] == "sonde-drift/1"
    assert [s["moved"] for s in found["sites"]] == [True, True]
    assert page.read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_the_gate_and_the_correction(run, fits):
    words = ("--fail-on", "moved", "--quiet")
    assert run("drift", fits / "a.sonde", fits / "b.sonde", *words).code == 1
    halves = run("drift", fits / "p.sonde", fits / "m.sonde", *words)
    assert halves.code == 0
    assert halves.out.startswith("None of 1 site moved")
    same = run("drift", fits / "a.sonde", fits / "a.sonde", *words)
    assert (same.code, same.out) == (0, "Both files hold the same states: nothing moved\n")
    loose = run("drift", fits / "p.sonde", fits / "m.sonde", "--correction", "bh", "--json").json()
    strict = run("drift", fits / "p.sonde", fits / "m.sonde", "--json").json()
    pairs = zip(loose["comparisons"], strict["comparisons"], strict=True)
    assert all(a["p"] == b["p"] and a["adjusted"] <= b["adjusted"] + 1e-12 for a, b in pairs)


def test_chosen_methods_and_sizes(run, fits):
    words = ("--methods", "hotelling,unit_shift(test='js')", "--json")
    found = run("drift", fits / "a.sonde", fits / "b.sonde", *words).json()
    assert {c["method"] for c in found["comparisons"]} == {"hotelling", "unit_shift"}
    ran = run("drift", fits / "a.sonde", fits / "b.sonde", "--sizes")
    assert "Moments" in ran.out
    assert "second: " in ran.out
    sizes = json.loads(run("drift", fits / "a.sonde", fits / "b.sonde", "--sizes", "--json").out)
    assert all(entry["bytes"] > 0 for entry in sizes["states"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.sonde", "none.sonde"], ["none.sonde"]),
        (["a.sonde", "b.sonde", "-o", "x.pdf"], [".html", "x.pdf"]),
        (["a.sonde", "b.sonde", "-o", "no/where.html"], ["no"]),
        (["a.sonde", "b.sonde", "--level", "2"], ["--level", "2"]),
        (["a.sonde", "b.sonde", "--methods", "knn"], ["KNN", "hotelling"]),
        (["a.sonde", "b.sonde", "--correction", "none"], ["correction"]),
        (["a.sonde"], ["SECOND"]),
        (["a.sonde", "broken.sonde"], ["broken.sonde"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(run, fits, monkeypatch, words, said):
    monkeypatch.chdir(fits)
    (fits / "broken.sonde").write_bytes((fits / "a.sonde").read_bytes()[:400])
    before = sorted(fits.iterdir())
    line = run("drift", *words).error()
    assert all(word in line for word in said), line
    assert sorted(fits.iterdir()) == before


def test_other_widths_are_left_out_and_said(run, fits):
    ran = run("drift", fits / "a.sonde", fits / "narrow.sonde", "-v")
    assert ran.code == 0, ran.err
    assert "got dim=5 and dim=3" in " ".join(ran.out.split())
