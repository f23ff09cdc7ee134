"""Two data sets as one, labelled."""

import json

import pytest
from PIL import Image

from models import mlp
from sonde.core import InputError
from sonde.data import contrast, load, open_inputs


def test_items_keep_their_data_set_as_label_and_place(tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps({"text": t, "label": 7}) + "\n" for t in ("a", "b", "c")))
    bad.write_text("".join(json.dumps({"text": t, "label": 7}) + "\n" for t in ("x", "y")))
    found = contrast(good, bad)
    listed = list(found.rows())
    assert [(r["text"], r["label"]) for r in listed] == [
        *[(t, 0) for t in "xy"],
        *[(t, 1) for t in "abc"],
    ]
    for start, stop in ((0, 2), (1, 4), (2, 5), (3, 4)):
        assert found.take(start, stop) == listed[start:stop]
    two = contrast(good, bad, limit=2)
    assert (
        [r["text"] for r in two.rows()]
        == ["x", "y", "a", "b"]
        == [r["text"] for r in two.take(0, 4)]
    )
    assert found.place(1) == "line 2 of bad.jsonl"
    assert found.where(3) == "good.jsonl line 2"
    assert found.names_of("label") == ("negative side", "positive side")


def test_sides_are_told_apart_for_a_classifier_with_classes_of_its_own():
    model = load("sonde:digits", device="cpu")
    data = contrast([Image.new("L", (8, 8), 255)] * 2, [Image.new("L", (8, 8))] * 3)
    inputs = open_inputs(model, data)
    assert inputs.listing.label.tolist() == [0, 0, 0, 1, 1]
    assert inputs.label_names == ("negative side", "positive side")


def test_images_of_two_folders_are_found(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / f"{name}.png")
        (tmp_path / name / "list.jsonl").write_text(json.dumps({"image": f"{name}.png"}) + "\n")
    data = contrast(tmp_path / "one" / "list.jsonl", tmp_path / "two" / "list.jsonl")
    inputs = open_inputs(load("sonde:digits", device="cpu"), data)
    (batch,) = inputs.batches(0, 2)
    assert batch.kwargs["pixel_values"].shape[0] == 2


@pytest.mark.slow
def test_docstrings_and_code_are_of_the_same_functions():
    found = contrast("sonde:docstrings", "sonde:code")
    rows = list(found.rows())
    code, docstrings = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [r["pair"] for r in code] == [r["pair"] for r in docstrings]
    assert {r["side"] for r in code} == {0}
    quotes = sum('"""' in r["text"] or "'''" in r["text"] for r in docstrings) / len(docstrings)
    assert len(code) == 512
    assert quotes > 0.95 > 0.05 > sum('"""' in r["text"] for r in code) / len(code)


def test_cases_are_one_text_cut_within_a_word():
    rows = list(contrast("sonde:upper", "sonde:lower").rows())
    lower, upper = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [r["text"].upper() for r in lower] == [r["text"] for r in upper]
    whole = {r["pair"]: r["text"] for r in contrast("sonde:code", ["x"]).rows() if "pair" in r}
    assert len(lower) > 480
    for row in lower:
        text, after = row["text"], whole[row["pair"]][len(row["text"]) :]
        assert text == whole[row["pair"]].lower()[: len(text)]
        assert len(text) >= 48
        assert text[-1].isalpha()
        assert after[0].isalpha()


def test_what_has_no_two_sides_is_refused():
    with pytest.raises(InputError, match="the negative side, is empty"):
        contrast(["a"], [])
    with pytest.raises(InputError, match="Name sonde:stdlib/train-all"):
        contrast("sonde:docstrings", "sonde:stdlib")
    with pytest.raises(InputError, match="no shipped data 'sonde:kode'"):
        contrast("sonde:docstrings", "sonde:kode")
    model = load(mlp())
    with pytest.raises(InputError, match="text"):
        open_inputs(model, contrast(["a"], ["b"]))
