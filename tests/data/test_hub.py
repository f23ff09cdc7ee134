"""Hugging Face data sets: on disk, by name, live."""

import io
import sys

import pytest
from PIL import Image

from sonde.core import errors
from sonde.core.hashing import bytes_key
from sonde.data import hub, load, open_inputs

datasets = pytest.importorskip("datasets")


def texts(n, prefix=""):
    feature = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    rows = {"text": [f"{prefix}{i}" for i in range(n)], "label": [i % 2 for i in range(n)]}
    return datasets.Dataset.from_dict(rows, features=feature)


@pytest.fixture
def saved(tmp_path):
    splits = {"train": texts(5, "a"), "validation": texts(3, "b")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    texts(4).save_to_disk(tmp_path / "one")
    return tmp_path


def test_splits_are_test_then_validation_then_train(gpt2, bert, saved):
    model = load(gpt2)
    assert len(open_inputs(model, saved / "both")) == 3
    assert len(open_inputs(model, str(saved / "both" / "train"))) == 5
    assert len(open_inputs(model, saved / "one")) == 4
    with pytest.raises(errors.InputError, match=r"has the splits train, validation.*mean train"):
        open_inputs(model, saved / "both" / "trian")
    with pytest.raises(errors.InputError, match="has no splits"):
        open_inputs(model, saved / "one" / "train")


@pytest.mark.truth("the names of the ClassLabel and of the model, matched by hand")
def test_class_labels_are_matched_by_name(bert, saved):
    inputs = open_inputs(load(bert), saved / "one")
    (batch,) = inputs.batches(0, 4)
    assert batch.label.tolist() == [1, 0, 1, 0]
    assert inputs.own_labels


def test_live_data_sets_and_random_access(gpt2):
    inputs = open_inputs(load(gpt2), texts(20))
    (batch,) = inputs.batches(7, 9)
    assert batch.keys == [bytes_key(b"7"), bytes_key(b"8")]


def test_images_are_hashed_as_stored_and_decoded_late(vit):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
    rows = {"image": [{"bytes": file.getvalue(), "path": None}], "label": [1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    inputs = open_inputs(load(vit), datasets.Dataset.from_dict(rows, features=features))
    (batch,) = inputs.batches(0, 1)
    assert batch.keys == [bytes_key(file.getvalue())]
    assert batch.kwargs["pixel_values"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/set", ("org/set", None, None)),
        ("set", ("set", None, None)),
        ("set/test", ("set", None, "test")),
        ("org/set/mine", ("org/set", None, "mine")),
        ("org/set:en", ("org/set", "en", None)),
        ("org/set:en/train", ("org/set", "en", "train")),
    ],
)
def test_names_have_a_config_and_a_split(name, expected):
    assert hub._parts(name) == expected


def test_names_that_cannot_be_had(gpt2):
    with pytest.raises(errors.InputError, match="no file or folder nobody/nothing, and no data"):
        open_inputs(load(gpt2), "nobody/nothing")
    with pytest.raises(errors.InputError, match="no such file or folder: what is this"):
        open_inputs(load(gpt2), "what is this")


def test_without_the_extra_the_command_is_named(gpt2, saved, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "datasets")
    with pytest.raises(errors.InputError, match="needs the package datasets"):
        open_inputs(load(gpt2), saved / "one")


def test_a_broken_saved_data_set_is_named(gpt2, saved):
    for file in (saved / "one").glob("*.arrow"):
        file.write_bytes(b"x")
    with pytest.raises(errors.InputError, match="is not a readable data set"):
        open_inputs(load(gpt2), saved / "one")
