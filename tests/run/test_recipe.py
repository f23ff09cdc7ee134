"""How items became inputs is kept with what is fitted, and is the default of later readings."""

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sonde
from cli_case import run_words
from sonde.core.errors import SondeWarning, StateError
from sonde.detect import Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.store import write_store

QUIET: dict[str, Any] = {"progress": False}
HALF: dict[str, Any] = {"image_size": 6, "image_mean": 0.5, "image_std": 0.5}
OTHER: dict[str, Any] = {"image_size": 6, "image_mean": 0.2, "image_std": 0.2}
NETS = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(16, 3))
"""


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(90):
        part = place / ("a" if i < 60 else "b")
        part.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (7, 7), dtype=np.uint8)
        Image.fromarray(pixels).save(part / f"{i}.png")
    return place


@pytest.fixture(scope="module")
def images(folder):
    stream = read(net(), folder / "a", sites="4", **HALF)
    return fit(Mahalanobis(), stream, **QUIET)


@pytest.mark.truth("the same options given again")
def test_images_are_read_as_they_were(images, folder, tmp_path):
    images.save(tmp_path / "p.sonde")
    loaded = Fitted.load(tmp_path / "p.sonde")
    assert loaded.header["recipe"]["options"] == {
        "image_size": [6, 6],
        "image_mean": [0.5],
        "image_std": [0.5],
    }
    want = score(images, net(), folder / "b", **HALF, **QUIET)
    assert score(loaded, net(), folder / "b", **QUIET).equals(want)
    ready = calibrate(loaded, net(), folder / "b", **QUIET)
    again = calibrate(loaded, net(), folder / "b", **HALF, **QUIET)
    name = ready.names[0][0]
    assert ready.result(name).calibration.threshold(0.1) == pytest.approx(
        again.result(name).calibration.threshold(0.1)
    )


@pytest.mark.parametrize("other", [OTHER, HALF | {"image_size": 9}, {"image_std": 0.4}])
def test_images_of_another_recipe_are_refused(images, folder, tmp_path, other):
    for run in (score, calibrate):
        with pytest.raises(
            StateError, match=r"images that were preprocessed differently: Pillow.* here, "
        ):
            run(images, net(), folder / "b", **other, **QUIET)
    theirs = fit(Mahalanobis(), read(net(), folder / "b", sites="4", **HALF | other), **QUIET)
    with pytest.raises(
        StateError, match=r"Fitted.merge: the state was fitted on images that were pre"
    ):
        images.merge(theirs)


def test_rows_of_a_store_know_their_recipe(folder, tmp_path):
    place = write_store(read(net(), folder / "a", sites="4", **HALF), tmp_path / "acts")
    stored = fit(Mahalanobis(), read(place), **QUIET)
    assert score(stored, net(), folder / "b", **HALF, **QUIET).num_rows == 30
    with pytest.raises(StateError, match="images that were preprocessed differently"):
        score(stored, net(), folder / "b", **OTHER, **QUIET)


def test_what_is_not_known_is_no_difference(images, folder):
    header = {name: value for name, value in images.header.items() if name != "recipe"}
    old = replace(images, header=header)
    assert score(old, net(), folder / "b", **OTHER, **QUIET).num_rows == 30
    arrays = fit(Mahalanobis(), sonde.Stream.of(torch.randn(60, 3)), **QUIET)
    assert arrays.header["recipe"] == {}
    other = fit(Mahalanobis(), read(net(), folder / "b", sites="4", **OTHER), **QUIET)
    assert old.merge(other).header["recipe"] == {}
    half = fit(Mahalanobis(), read(net(), folder / "b", sites="4", **HALF), **QUIET)
    assert images.merge(half).header["recipe"] == images.header["recipe"]


TEXTS = [f"x = {i}\n" * (2 + i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def writer():
    return sonde.load("sonde:stdlib")


def texts(model, options: dict[str, Any], data: Any = TEXTS) -> Fitted:
    stream = read(model, data, **{"sites": "model.layers.0", "reducer": "last", **options})
    return fit(Mahalanobis(), stream, **QUIET)


@pytest.mark.slow
@pytest.mark.truth("the number of texts: a cut text is one row, a chunked one several")
def test_texts_are_cut_as_they_were(writer):
    fitted = texts(writer, {"max_length": 8, "long": "truncate"})
    new = [f"y = {i}\n" * 12 for i in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(fitted, writer, new, **QUIET).num_rows == 5
    with pytest.warns(
        SondeWarning, match="read with long='chunk', but the state was fitted with 'truncate'"
    ):
        assert score(fitted, writer, new, long="chunk", **QUIET).num_rows > 5
    with pytest.warns(SondeWarning, match="max_length=12, but the state was fitted with 8"):
        ready = calibrate(fitted, writer, new, max_length=12, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(ready, writer, new, **QUIET)
    assert ready.header["recipe"]["options"]["max_length"] == 12


@pytest.mark.slow
@pytest.mark.truth("scores of the same texts as plain items")
def test_a_column_is_taken_where_the_data_have_it(writer):
    rows = [{"body": text, "text": "no"} for text in TEXTS]
    fitted = texts(writer, {"text_column": "body"}, rows)
    want = score(fitted, writer, TEXTS[:9], **QUIET)["score"].to_pylist()
    for data in (rows[:9], [{"text": text} for text in TEXTS[:9]]):
        assert score(fitted, writer, data, **QUIET)["score"].to_pylist() == want


@pytest.mark.slow
@pytest.mark.truth("the number of generated tokens")
def test_prompts_are_continued_as_they_were(writer):
    how = {"generate": "max_new_tokens=3", "reducer": "tokens"}
    fitted = texts(writer, how, TEXTS[:20])
    assert fitted.header["recipe"]["options"]["generate"] == {"max_new_tokens": 3}
    again = score(fitted, writer, TEXTS[:4], **QUIET)
    with pytest.warns(SondeWarning, match="generate=None, but the state was fitted with"):
        plain = score(fitted, writer, TEXTS[:4], generate=None, **QUIET)
    assert again.num_rows == plain.num_rows + 4 * 3


@pytest.mark.slow
def test_the_flags_need_not_be_typed_again(folder, tmp_path, monkeypatch):
    (tmp_path / "nets_of_recipes.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--image-mean", "0.5", "--image-std", "0.5"]
    model = "nets_of_recipes:make"
    words = ["mahalanobis", model, folder / "a", "--sites", "4", *flags, "--image-size", "6"]
    ran = run_words("fit", *words, "-o", "p.sonde")
    assert ran.code == 0, ran.err
    assert "UNSEEN, with rows" in ran.err
    assert json.loads(run_words("info", "p.sonde", "--json").out)["recipe"]["pixels"]
    assert "image_mean=[0.5]" in run_words("info", "p.sonde").out
    for command in ("score", "calibrate"):
        assert run_words(command, "p.sonde", model, folder / "b").code == 0
    assert run_words("evaluate", "p.sonde", model, folder / "a", folder / "b").code == 0
    ran = run_words("score", "p.sonde", model, folder / "b", "--image-mean", "0.1")
    assert ran.code == 2
    assert "images that were preprocessed differently" in ran.err
