"""Inputs in a report: only where the user lets it hold them, then those of the rows it names."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from cli_case import run_words

pytestmark = pytest.mark.slow


def scanned(tmp_path, *words):
    ran = run_words("scan", *words, "-o", tmp_path / "report.json", "--quiet")
    assert ran.code == 0, ran.err
    return json.loads((tmp_path / "report.json").read_text())


@pytest.fixture
def texts(tmp_path):
    data, other = tmp_path / "data.jsonl", tmp_path / "other.jsonl"
    lines = [f"def f{i}(x):\n    return x + {i}" for i in range(60)]
    data.write_text("\n".join(json.dumps({"id": f"d{i}", "text": t}) for i, t in enumerate(lines)))
    strange = {f"o{i}": f"%%%% {i} qqq \u00c4\u20ac" for i in range(60)}
    other.write_text("\n".join(json.dumps({"id": i, "text": t}) for i, t in strange.items()))
    return ["sonde:stdlib", data, "--versus", other], strange


@pytest.mark.truth("the texts that were written")
def test_texts_are_those_that_were_read(tmp_path, texts):
    words, strange = texts
    rows = scanned(tmp_path, *words, "--show-inputs")["versus"]["rows"]
    assert len(rows) == 50
    assert all(row["input"] == strange[row["id"]] for row in rows)


def test_without_the_flag_nothing_of_them_is_in_a_report(tmp_path, texts):
    words, strange = texts
    report = scanned(tmp_path, *words)
    assert "qqq" not in json.dumps(report)
    assert all("input" not in row for row in report["versus"]["rows"])
    assert {row["id"] for row in report["versus"]["rows"]} <= set(strange)


@pytest.mark.truth("the pixels that were written")
def test_pictures_are_those_that_were_read(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((60, 1, 8, 8)).astype("f4")
    np.savez(tmp_path / "noise.npz", x=x, id=np.array([f"n{i}" for i in range(60)]))
    words = ["sonde:digits", "sonde:digits/test", "--versus", tmp_path / "noise.npz"]
    rows = scanned(tmp_path, *words, "--show-inputs")["versus"]["rows"]
    for row in rows[:5]:
        head, _, body = row["input"].partition(",")
        assert head == "data:image/png;base64"
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
        assert image.shape == (48, 48, 3)
        want = x[int(row["id"][1:]), 0]
        want = (want - want.min()) / (want.max() - want.min()) * 255
        assert np.abs(image[3::6, 3::6, 0] - want).max() <= 0.5 + 1e-3


@pytest.mark.truth("numpy argsort")
def test_plain_rows_show_their_largest_units(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(120, 30)).astype("f4"), rng.normal(size=(60, 30)).astype("f4") + 9
    np.savez(tmp_path / "a.npz", x=a)
    np.savez(tmp_path / "b.npz", x=b, id=np.array([str(i) for i in range(60)]))
    words = ["-", tmp_path / "a.npz", "--versus", tmp_path / "b.npz", "--show-inputs"]
    for row in scanned(tmp_path, *words)["versus"]["rows"][:5]:
        shown = dict(part.split(": ") for part in row["input"].split(", "))
        mine = b[int(row["id"])]
        assert list(map(int, shown)) == np.argsort(-np.abs(mine))[:12].tolist()
        assert [float(v) for v in shown.values()] == pytest.approx(
            np.sort(np.abs(mine))[::-1][:12], rel=1e-3
        )


@pytest.mark.truth("the rows that were written")
def test_rows_that_share_an_id_show_their_own_input(tmp_path):
    rng = np.random.default_rng(0)
    usual, other = (rng.normal(size=(120, 6)).astype("f4") for _ in range(2))
    other[1::2, 3] = 50 + np.arange(60)
    np.savez(tmp_path / "a.npz", x=usual)
    names = np.array([f"p{i // 2}" for i in range(120)])
    np.savez(tmp_path / "b.npz", x=other, id=names)
    words = ["-", tmp_path / "a.npz", "--versus", tmp_path / "b.npz", "--show-inputs"]
    for row in scanned(tmp_path, *words)["versus"]["rows"][:20]:
        unit, value = row["input"].split(", ")[0].split(": ")
        assert int(unit) == 3
        assert float(value) == pytest.approx(50 + int(row["id"][1:]))
        assert "order" not in row
