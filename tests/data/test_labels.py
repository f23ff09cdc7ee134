"""From label values to class numbers."""

import numpy as np
import pytest
from torch import nn

from sonde.core import errors
from sonde.data import load, open_inputs
from sonde.data.labels import LabelColumn

NAMED = {0: "Cat", 1: "dog, hound"}
GENERIC = {0: "LABEL_0", 1: "LABEL_1"}


def labels(values, id2label=None, names=None):
    column = LabelColumn()
    for value in values:
        column.add(value)
    return column.finish(id2label, names, "label")


CASES = {
    "one for each item, in arrays": (
        [np.array([1]), np.array([[0]]), [1.0]],
        NAMED,
        None,
        [1, 0, 1],
        True,
    ),
    "one name for each item, in lists": ([["cat"], ("CAT",)], NAMED, None, [0, 0], True),
    "names without case": (["CAT", " dog, hound "], NAMED, None, [0, 1], True),
    "integers": ([1, 0, 1], NAMED, None, [1, 0, 1], True),
    "integers as text": (["1", "0"], NAMED, None, [1, 0], True),
    "one does not match": (["zebra", "cat"], NAMED, None, [1, 0], False),
    "integer outside": ([0, 2], NAMED, None, [0, 1], False),
    "generic names take integers": ([1, 0], GENERIC, None, [1, 0], True),
    "none": (["cat", "", None, -1, "-1", float("nan")], NAMED, None, [0, -1, -1, -1, -1, -1], True),
    "names of the data match": ([0, 1], NAMED, ["Dog, Hound", "cat"], [1, 0], True),
    "names of the data differ": ([0, 1], NAMED, ["zebra", "ape"], [1, 0], False),
    "names of the data, generic model": ([0, 1], GENERIC, ["zebra", "ape"], [0, 1], True),
    "no classifier, integers": ([3, 5], None, None, [3, 5], True),
    "no classifier, names": (["b", "a"], None, None, [1, 0], False),
    "sorted as numbers": (["10", "9", "-7"], None, None, [2, 1, 0], False),
    "one-hot rows": ([[0, 1], np.array([1.0, 0.0]), (0, 1)], NAMED, None, [1, 0, 1], True),
    "one-hot rows and none": ([[0, 0, 1], None], None, None, [2, -1], True),
    "booleans": ([True, False], None, None, [1, 0], True),
    "whole numbers kept as floats": (
        [1.0, 0.0, float("nan"), -1.0],
        None,
        None,
        [1, 0, -1, -1],
        True,
    ),
    "the same as text": (["1.0", "0.", "", "-1.0"], None, None, [1, 0, -1, -1], True),
    "floats of a classifier": (["1.0", 0.0], NAMED, None, [1, 0], True),
    "names that are floats": (["1.0", "2.0"], {0: "1.0", 1: "2.0"}, None, [0, 1], True),
    "names that are floats, none of them": (["1.0", "3.0"], {0: "2.0"}, None, [0, 1], False),
    "codes with an underscore": (["1_0", "1_1"], None, None, [0, 1], False),
    "numpy": ([np.int64(1), np.str_("cat")], NAMED, None, [1, 0], True),
}


@pytest.mark.truth("the rules of the contract, by hand")
@pytest.mark.parametrize("name", CASES)
def test_values_become_class_numbers(name):
    values, id2label, names, expected, own = CASES[name]
    found = labels(values, id2label, names)
    assert found.values.tolist() == expected
    assert found.own is own
    assert bool(found.reason) is not own


@pytest.mark.parametrize(
    "values", [[[0, 1], [1, 1]], [[0, 1], [0, 0, 1]], [[0, 1], 1], [[0.4, 0.6], [0, 1]], [[0, 0]]]
)
def test_rows_that_are_not_one_hot_are_several_labels(values):
    found = labels(values)
    assert found.several
    assert "holds several values" in found.reason
    assert not found.any


def test_names_follow_the_numbers():
    assert labels([3, 5]).names == ("0", "1", "2", "3", "4", "5")
    assert labels(["b", "a"]).names == ("a", "b")
    assert labels([1], NAMED).names == ("Cat", "dog, hound")
    assert labels(["1.0", "0.0"]).names == labels([1.0, 0.0]).names == ("0", "1")
    assert labels([0, 1], None, ["x", "y", "z"]).names == ("x", "y", "z")


@pytest.mark.parametrize("values", [[0.5, 1.0], ["0.5", "1"], [1.0, "1.5"]])
def test_a_column_of_fractions_is_no_label(values):
    found = labels(values)
    assert not found.any
    assert "not whole" in found.reason


@pytest.mark.truth("the rows as they were written")
def test_labels_of_a_table_with_holes(gpt2, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": list("abcd"), "label": [1, 0, None, 1]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    tables = (frame, frame.astype({"label": "Int64"}), tmp_path / "t.csv", tmp_path / "t.jsonl")
    for data in tables:
        inputs = open_inputs(load(gpt2), data)
        assert (inputs.listing.label.tolist(), inputs.notes) == ([1, 0, -1, 1], ())
        assert inputs.label_names == ("0", "1")


def test_more_than_1024_values_are_no_label():
    assert labels([f"v{i}" for i in range(1024)]).any
    found = labels([f"v{i}" for i in range(1025)])
    assert not found.any
    assert "1,024" in found.reason


def test_labels_that_are_all_missing_are_an_error_only_where_they_were_asked_for(gpt2, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,\nb,-1\n")
    inputs = open_inputs(load(gpt2), path)
    assert inputs.label_names == ()
    (batch,) = inputs.batches(0, 2)
    assert batch.label.tolist() == [-1, -1]
    with pytest.raises(errors.InputError, match="column 'label' gives no label: every value"):
        open_inputs(load(gpt2), path, label_column="label")
    path.write_text("text,score\na,0.5\n")
    with pytest.raises(errors.InputError, match="not whole"):
        open_inputs(load(gpt2), path, text_column="text", label_column="score")


def test_the_report_hears_that_classes_are_not_the_models_own(bert, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,good\nb,BAD\n")
    inputs = open_inputs(load(bert), path)
    assert (inputs.own_labels, inputs.label_names, inputs.notes) == (True, ("Bad", "Good"), ())
    path.write_text("text,label\na,good\nb,awful\n")
    inputs = open_inputs(load(bert), path)
    assert (inputs.own_labels, inputs.label_names) == (False, ("awful", "good"))
    assert any("not the model's own" in note for note in inputs.notes)


@pytest.mark.truth("the user's own order of the outputs")
def test_classes_that_are_named_number_texts_in_the_order_of_the_outputs(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\n1,2,ham\n3,4,spam\n5,6,ham\n")
    net = load(nn.Linear(2, 2))
    inputs = open_inputs(net, path, classes="spam,ham")
    assert (inputs.own_labels, inputs.label_names) == (True, ("spam", "ham"))
    assert inputs.listing.label.tolist() == [1, 0, 1]
    with pytest.raises(errors.InputError, match="among the classes spam, eggs, got ham"):
        open_inputs(net, path, classes=["spam", "eggs"])
