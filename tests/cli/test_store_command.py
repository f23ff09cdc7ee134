"""Stores on the command line: written, grown, fitted, scored, scanned, and refused."""

import json

import numpy as np
import pyarrow as pa
import pytest

from cli_case import run_words

pytestmark = pytest.mark.slow

DIGITS = ("sonde:digits", "sonde:digits/test")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 5)).astype("f4")
    np.savez(folder / "rows.npz", a=x, b=x[:, :3] ** 2)
    np.savez(folder / "more.npz", a=x[:40] + 1, b=x[:40, :3])
    read = run_words("read", "-", folder / "rows.npz", "-o", folder / "acts")
    assert read.code == 0, read.err
    return folder


@pytest.mark.truth("the file that a fit of the arrays wrote")
def test_a_fit_and_its_scores_are_those_of_the_data(here):
    for name, source in (("live", ["-", here / "rows.npz"]), ("stored", [here / "acts"])):
        ran = run_words("fit", "mahalanobis,knn(k=3)", *source, "-o", here / f"{name}.sonde")
        assert ran.code == 0, ran.err
        ran = run_words("score", here / "live.sonde", *source, "-o", here / f"{name}.csv")
        assert ran.code == 0, ran.err
    assert (here / "live.sonde").read_bytes() == (here / "stored.sonde").read_bytes()
    assert (here / "live.csv").read_bytes() == (here / "stored.csv").read_bytes()
    assert not list(here.glob("*.run"))


@pytest.mark.truth("what the commands give for the arrays")
def test_calibrations_and_evaluations_are_those_of_the_data(here):
    probe, more = here / "p.sonde", here / "more_acts"
    assert run_words("fit", "mahalanobis", here / "acts", "-o", probe).code == 0
    assert run_words("read", "-", here / "more.npz", "-o", more).code == 0
    sources = {"live": ["-", here / "more.npz"], "stored": [more]}
    for name, source in sources.items():
        assert run_words("calibrate", probe, *source, "-o", here / f"{name}.c.sonde").code == 0
    assert (here / "live.c.sonde").read_bytes() == (here / "stored.c.sonde").read_bytes()
    live = run_words("evaluate", probe, "-", here / "rows.npz", here / "more.npz", "--json")
    stored = run_words("evaluate", probe, here / "acts", more, "--json")
    assert live.code == 0
    assert live.json()["rows"] == stored.json()["rows"]
    assert "folder of rows" in run_words("evaluate", probe, more, here / "more.npz").error()


def test_a_store_is_scanned_and_compared(here):
    other = here / "other"
    assert run_words("read", "-", here / "more.npz", "-o", other).code == 0
    ran = run_words("scan", here / "acts", "--versus", other, "-o", here / "r.json")
    assert ran.code == 0, ran.err
    assert json.loads((here / "r.json").read_text())["schema"] == "sonde-scan/1"


def test_a_store_grows(here):
    place = here / "grown"
    assert run_words("read", "-", here / "rows.npz", "--sites", "a", "-o", place).code == 0
    line = run_words("read", "-", here / "rows.npz", "-o", place).error()
    assert "--add-sites" in line
    for _ in range(2):
        ran = run_words("read", "-", here / "more.npz", "--sites", "a", "-o", place, "--append")
        assert "130 examples" in ran.err
    ran = run_words("fit", "knn(k=3)", place, "-o", here / "grown.sonde", "--json")
    assert ran.json()["results"][0]["n"] + ran.json()["results"][0]["n_held"] == 130


def test_columns_and_a_share_of_the_patches(tmp_path):
    ran = run_words(
        "read", *DIGITS, "--limit", "40", "--sites", "vit.layers.0", "--further", "patches",
        "--keep", "1/4", "--columns", "label", "-o", tmp_path / "acts", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    path = next((tmp_path / "acts" / "rows" / "examples").glob("*.arrow"))
    found = pa.ipc.open_file(path).read_all()
    assert found["column_label"].to_pylist() == found["label"].to_pylist()
    patches = pa.ipc.open_file(next((tmp_path / "acts/rows/patches").glob("*.arrow"))).read_all()
    assert 0 < patches.num_rows < 40 * 16 / 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "knn", "acts", "rows.npz"], ["is a store of rows", "rows.npz", "Leave DATA out"]),
        (["fit", "knn", "acts", "--limit", "3"], ["leave out limit"]),
        (["fit", "knn", "acts", "--device", "cpu"], ["--device", "no model is loaded"]),
        (["fit", "knn", "acts", "--sites", "c"], ["no site 'c'", "It has a, b"]),
        (["fit", "knn", "acts", "--unit-size", "7"], ["unit size of the store", "256"]),
        (["fit", "knn", "-"], ["expected DATA"]),
        (["scan", "acts", "--versus", "rows.npz"], ["expected another store"]),
        (["read", "-", "rows.npz", "-o", "none", "--append"], ["no store in none"]),
        (["read", "-", "rows.npz", "-o", "acts", "--append", "--add-sites"], ["two runs"]),
        (["read", "-", "rows.npz", "-o", "acts", "--append", "--fresh"], ["--fresh replaces"]),
        (
            ["read", "-", "more.npz", "-o", "acts", "--add-sites"],
            ["matched by their ids", "the same ids"],
        ),
        (["read", "-", "rows.npz", "-o", "new", "--keep", "0.5"], ["--keep", "1/8", "'0.5'"]),
        (["read", "-", "rows.npz", "-o", "new", "--keep", "1/8"], ["no rows to choose from"]),
        (["read", "-", "rows.npz", "-o", "new", "--columns", "a"], ["a table of data"]),
        (["read", "-", "more.npz", "-o", "acts"], ["of another model, data or reading"]),
        (
            ["read", "acts", "-o", "acts", "--fresh"],
            ["this command reads it", "Name another folder"],
        ),
    ],
)
def test_what_is_wrong_is_one_line(here, monkeypatch, words, said):
    monkeypatch.chdir(here)
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*")}
    line = run_words(*words).error()
    assert all(text in line for text in said), line
    folders = {here, here / "acts"}  # a lock comes and goes
    after = {p: p.stat().st_mtime_ns for p in here.rglob("*")}
    assert {p: t for p, t in after.items() if p not in folders} == {
        p: t for p, t in before.items() if p not in folders
    }


@pytest.mark.parametrize("broken", ["range", "file", "version"])
def test_a_store_that_is_not_whole_is_one_line(here, tmp_path, broken):
    from sonde.store.layout import read_json, sealed

    place = tmp_path / "acts"
    assert run_words("read", "-", here / "rows.npz", "-o", place).code == 0
    if broken == "range":
        next((place / "ranges").iterdir()).unlink()
    elif broken == "file":
        next((place / "rows" / "examples").iterdir()).unlink()
    else:
        path = place / "store.json"
        path.write_bytes(sealed({**read_json(path), "version": 2}))
    said = {"range": "is not complete", "file": "is missing", "version": "later sonde"}
    for words in (["fit", "knn", place, "-o", tmp_path / "p.sonde"], ["scan", place]):
        assert said[broken] in run_words(*words).error()
    assert not (tmp_path / "p.sonde").exists()
    assert not (tmp_path / "p.run").exists()


def test_a_fit_that_did_no_unit_leaves_no_run_behind(here, tmp_path):
    place, output = tmp_path / "acts", tmp_path / "z.sonde"
    assert run_words("read", "-", here / "rows.npz", "-o", place).code == 0
    for path in (place / "rows" / "examples").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert "has other bytes" in run_words("fit", "covariance", place, "-o", output).error()
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]
    assert "another plan" not in run_words("fit", "mahalanobis", place, "-o", output).error()


def test_a_fit_that_failed_after_a_unit_keeps_it(here, tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    place, output = tmp_path / "acts", tmp_path / "z.sonde"
    words = ("read", "-", here / "rows.npz", "-o", place, "--unit-size", "30")
    assert run_words(*words).code == 0
    path = place / "rows" / "examples" / "2-3.arrow"
    sound = path.read_bytes()
    path.write_bytes(bytes(len(sound)))
    assert "has other bytes" in run_words("fit", "covariance", place, "-o", output).error()
    assert list((tmp_path / "z.run" / "states").iterdir())
    path.write_bytes(sound)
    assert run_words("fit", "covariance", place, "-o", output, "--resume").code == 0
