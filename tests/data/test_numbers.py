"""Tables of numbers for a module that takes tensors: one vector of features per row."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import nn

from sonde.core.errors import InputError
from sonde.data import load, open_inputs

TABLE = "a,b,c,label\n1,2.5,-3,x\n4,5e1,6,y\n7,8,9,x\n"
ROWS = [[1, 2.5, -3], [4, 50, 6], [7, 8, 9]]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()


def x_of(inputs):
    (batch,) = inputs.batches(0, len(inputs))
    return batch.args[0], batch.label.tolist()


@pytest.mark.truth("the numbers as written")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_of_numbers_are_the_features(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    named = [dict(zip("abc", r, strict=True), label="xy"[i == 1]) for i, r in enumerate(ROWS)]
    if suffix == ".csv":
        path.write_text(TABLE)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in named))
    else:
        parquet.write_table(pa.Table.from_pylist([{**r, "b": float(r["b"])} for r in named]), path)
    inputs = open_inputs(load(mlp()), path)
    x, label = x_of(inputs)
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.tensor(ROWS))
    assert label == [0, 1, 0]
    assert inputs.notes[0] == "3 columns of numbers are read as one vector: a, b, c."


def test_one_column_and_one_item_are_told_as_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n1,x\n2,x\nfour,y\n3,y\n")
    inputs = open_inputs(load(torch.nn.Linear(1, 2)), path, skip_bad=True)
    assert inputs.notes[0] == "1 column of numbers is read as one vector: a."
    assert inputs.notes[1].startswith("1 item was skipped: t.csv line 4")


@pytest.mark.truth("the same numbers in an array")
def test_a_table_gives_the_states_of_the_array(tmp_path):
    import sonde

    (tmp_path / "t.csv").write_text(TABLE)
    np.savez(tmp_path / "t.npz", x=np.array(ROWS, dtype="f4"))
    both = [next(iter(sonde.read(mlp(), tmp_path / name))) for name in ("t.csv", "t.npz")]
    assert torch.equal(both[0].rows["1:out"], both[1].rows["1:out"])


def test_a_column_called_x_is_one_of_several(tmp_path):
    (tmp_path / "t.csv").write_text("x,z,w\n1,2,3\n4,5,6\n")
    x, _ = x_of(open_inputs(load(mlp()), tmp_path / "t.csv"))
    assert x.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_columns_named_like_arguments_are_arguments():
    class Two(nn.Module):
        def forward(self, up, down):
            return up - down

    (batch,) = open_inputs(load(Two()), [{"up": 3.0, "down": 1.0}]).batches(0, 1)
    assert batch.kwargs == {"up": torch.tensor([3.0]), "down": torch.tensor([1.0])}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("a,b,kind\n1,2,x\n", r"'kind'.*--label-column, --id-column or --group-column kind"),
        ("a,b\n1,2\n3,\n", r"line 3: no value in column 'b'.*--skip-bad"),
        ("a,b\n1,2\n" + "3,4\n" * 30 + "5,x\n", r"line 33: expected a number in column 'b'.*'x'"),
        ("a,b\n1,2\n3,x\n5,6\n", r"line 3: expected a number in column 'b'.*--skip-bad"),
        ("name,place\nx,y\n", r"no column of numbers, only name, place"),
    ],
)
def test_what_is_no_number_is_named(tmp_path, table, said):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(InputError, match=said):
        open_inputs(load(mlp()), tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "a,b\n1,2\n1,2\n1_000,2\n", r"line 4: expected a number .*'a'.*got '1_000'\."),
        (
            "t.jsonl",
            f'{{"a": 1}}\n{{"a": 1}}\n{{"a": {10**400}}}\n',
            "line 3:.*got one of 1,329 bits",
        ),
        ("t.jsonl", f'{{"a": 1}}\n{{"a": 1{"0" * 5000}}}\n', "line 2: not valid JSON"),
    ],
)
def test_numbers_that_python_alone_would_read_are_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        open_inputs(load(mlp()), tmp_path / name)


def test_rows_without_a_value_can_be_left_out(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,3\n4,NA,6\n7,8,9\n")
    inputs = open_inputs(load(mlp()), tmp_path / "t.csv", skip_bad=True)
    assert x_of(inputs)[0].tolist() == [[1, 2, 3], [7, 8, 9]]
    assert inputs.n_skipped == 1
