"""Where a report says that a row is found: what a user opens, and no path with hashed ids."""

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


def found(report, code):
    return next(finding for finding in report["findings"] if finding["code"] == code)


@pytest.fixture
def photos(tmp_path):
    """Sixty pictures in two folders, one of them in both."""
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "photos" / "ab"[i % 2] / f"person {i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    first = tmp_path / "photos" / "a" / "person 00.png"
    (tmp_path / "photos" / "b" / "again.png").write_bytes(first.read_bytes())
    return tmp_path / "photos"


@pytest.mark.truth("the files that were written")
def test_pictures_are_found_by_their_paths(tmp_path, photos):
    report = scanned(tmp_path, "sonde:digits", photos)
    copies = report["rows"]["duplicates"]
    assert [row["places"] for row in copies] == [["a/person 00.png", "b/again.png"]]
    assert found(report, "SND041")["places"] == copies[0]["places"]
    assert len(set(copies[0]["ids"])) == 1


def test_no_path_is_in_a_report_with_hashed_ids(tmp_path, photos):
    report = scanned(tmp_path, "sonde:digits", photos, "--hash-ids")
    assert "person" not in json.dumps(report)
    assert "again" not in json.dumps(report)
    assert report["rows"]["duplicates"][0]["places"] == ["row 0", "row 30"]


@pytest.mark.truth("the lines that were written")
def test_texts_are_found_by_line_and_token(tmp_path):
    lines = [json.dumps({"text": f"def f{i}(x):\n    return x + {i}"}) for i in range(40)]
    long = json.dumps({"text": "%%%% qqq \u00c4\u20ac" * 60})
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "other.jsonl").write_text("\n".join(["", *lines[:20], "{", long]))
    words = ["sonde:stdlib", tmp_path / "data.jsonl", "--versus", tmp_path / "other.jsonl"]
    report = scanned(tmp_path, *words, "--skip-bad")
    places = [row["places"][0] for row in report["versus"]["rows"]]
    assert {"line 23", "line 23, from token 256"} <= set(places[:4])
    assert {f"line {i}" for i in range(2, 22)} <= set(places)


@pytest.mark.truth("the same report without hashed ids")
def test_hashing_ids_leaves_numbers_in_sentences_alone(tmp_path):
    texts = [f"def f{i % 59}(x):\n    return x + {i % 59}" for i in range(60)]
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    words = ["sonde:stdlib", tmp_path / "data.jsonl"]
    plain = found(scanned(tmp_path, *words), "SND041")
    hashed = found(scanned(tmp_path, *words, "--hash-ids"), "SND041")
    assert plain["sentence"].startswith("1 of 60 inputs")
    assert hashed["sentence"] == plain["sentence"]
    assert plain["rows"] == ["0", "59"]
    assert not set(hashed["rows"]) & set(plain["rows"])
    assert (plain["places"], hashed["places"]) == (["line 1", "line 60"], ["row 0", "row 59"])
