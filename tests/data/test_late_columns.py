"""Columns that the first rows of a file do not have."""

import json

import pytest

from sonde.core.errors import InputError
from sonde.data import check_data, load, open_inputs
from sonde.data.sources import SAMPLE_ROWS

FIRST = SAMPLE_ROWS + 5


@pytest.fixture(params=["list", "jsonl"])
def written(request, tmp_path):
    """A function that gives rows as items in memory, or as the path of a file."""

    def write(late, **every):
        rows = [{"text": "abc"[i % 3] * (i + 1)} | every for i in range(40)]
        for i in range(FIRST, 40):
            rows[i] |= {name: f"{name}{i % 2}" if name != "side" else 1 for name in late}
        if request.param == "list":
            return rows
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return write


@pytest.mark.truth("the rows as they were written")
@pytest.mark.parametrize("name", ["label", "y"])
@pytest.mark.parametrize("named", [False, True])
def test_labels_that_come_late_are_labels(gpt2, written, name, named):
    options = {"label_column": name} if named else {}
    inputs = open_inputs(load(gpt2), written([name]), max_length=16, long="truncate", **options)
    expected = [-1] * FIRST + [i % 2 for i in range(FIRST, 40)]
    assert inputs.listing.label.tolist() == expected
    assert inputs.label_names == (f"{name}0", f"{name}1")


@pytest.mark.truth("the same rows with empty cells before")
def test_ids_groups_and_pairs_that_come_late_count(gpt2, written):
    late = ["id", "group", "pair", "side"]
    model, options = load(gpt2), {"max_length": 16, "long": "truncate"}
    found = open_inputs(model, written(late), **options)
    empty = open_inputs(model, written(late, **dict.fromkeys(late)), **options)
    assert found.fingerprint == empty.fingerprint
    assert found.ids == empty.ids
    assert found.ids[FIRST] == f"id{FIRST % 2}"
    assert found.grouped
    assert found.listing.side.tolist() == [-1] * FIRST + [1] * (40 - FIRST)


def test_a_label_of_the_first_rows_stays_the_label(gpt2, written):
    options = {"max_length": 16, "long": "truncate"}
    inputs = open_inputs(load(gpt2), written(["label"], target="a"), **options)
    assert inputs.layout.label == "target"


def test_a_column_that_never_comes_is_named(gpt2, written):
    data = written(["kind"])
    with pytest.raises(InputError, match="no column 'kinds', only text"):
        open_inputs(load(gpt2), data, label_column="kinds")
    check_data(data, ["kind"])
