"""Which split of a data set is read, and that it is said."""

import json

import numpy as np
import pytest
from PIL import Image

import sonde
from cli_case import run_words
from sonde.core.errors import InputError, SondeWarning
from sonde.data import open_inputs
from sonde.data.opening import open_source
from sonde.measure import Covariance

datasets = pytest.importorskip("datasets")


def items(prefix, n=3):
    return datasets.Dataset.from_dict({"text": [f"{prefix}{i}" for i in range(n)]})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("splits")
    both = datasets.DatasetDict({"train": items("a"), "test": items("b")})
    both.save_to_disk(place / "both")
    datasets.DatasetDict({"validation": items("c"), "test": items("d")}).save_to_disk(place / "new")
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (place / "photos" / split / name).mkdir(parents=True)
            pixels = np.full((8, 8), 9 * i + (split == "test"), np.uint8)
            Image.fromarray(pixels).save(place / "photos" / split / name / "1.png")
    return place


@pytest.mark.parametrize("mark", ["/", ":"])
def test_a_split_stands_after_a_slash_or_a_colon(saved, mark):
    for data, want in (("sonde:digits", 1260), ("sonde:stdlib", None)):
        source, _ = open_source(f"{data}{mark}train")
        assert (source.name, source.split, source.split_was_named) == (
            f"{data}/train",
            "train",
            True,
        )
        if want is not None:
            assert len(source.take(0, 2000)) == want
    source, _ = open_source(f"{saved / 'both'}{mark}train")
    assert [row["text"] for row in source.rows()] == ["a0", "a1", "a2"]
    source, _ = open_source(f"{saved / 'photos'}{mark}train")
    assert [row["label"] for row in source.rows()] == ["cat", "dog"]


@pytest.mark.slow
def test_test_is_read_unless_a_fit_asks_for_train(saved):
    both = datasets.load_from_disk(str(saved / "both"))
    for data in (saved / "both", both, "sonde:digits", saved / "photos"):
        assert open_source(data)[0].split == "test"
        assert open_source(data, split="train")[0].split == "train"
    with pytest.raises(InputError, match=r"the splits validation, test, and none.*'train'.*slash"):
        open_source(saved / "new", split="train")
    inputs = open_inputs(sonde.load("sonde:digits"), saved / "photos", label_column="label")
    assert inputs.label_names == ("cat", "dog")
    assert "the split 'test' (others: train)" in inputs.notes[0]


@pytest.mark.slow
def test_a_fit_in_python_on_the_test_split_is_said():
    stream = sonde.read("sonde:digits", "sonde:digits", limit=8)
    with pytest.warns(SondeWarning, match="the split sonde:digits/test is read"):
        sonde.fit(Covariance(), stream, progress=False)
    sonde.fit(
        Covariance(), sonde.read("sonde:digits", "sonde:digits:test", limit=8), progress=False
    )


@pytest.mark.slow
@pytest.mark.truth("the split that is named")
def test_commands_say_which_split_they_read(tmp_path):
    small = ["--limit", "40", "--sites", "classifier"]
    probe, page = str(tmp_path / "p.sonde"), str(tmp_path / "r.json")
    words = ["fit", "mahalanobis", "sonde:digits", "sonde:digits", "-o", probe, *small]
    ran = run_words(*words)
    assert "sonde:digits/train is read" in ran.err, ran.err
    assert json.loads(run_words(*words, "--json").out)["split"] == "train"
    ran = run_words("score", probe, "sonde:digits", "sonde:digits", "--limit", "40")
    assert "sonde:digits/test is read" in ran.err
    scanned = ["scan", "sonde:digits", "sonde:digits", "--versus", "sonde:digits:train", "-o", page]
    ran = run_words(*scanned, *small)
    assert "sonde:digits/test is read" in ran.err
    assert "sonde:digits/train is read" in ran.err
    assert "sonde:digits/test" in (tmp_path / "r.json").read_text()
