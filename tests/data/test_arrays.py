"""Which arrays of a file are labels."""

import numpy as np
import pytest

from sonde.data.arrays import open_arrays


@pytest.mark.parametrize("name", ["label", "labels", "target", "class", "y"])
def test_whole_numbers_under_a_usual_name_are_labels_and_no_site(name, tmp_path):
    path = tmp_path / "d.npz"
    label = np.arange(6) % 2
    arrays = {"x": np.ones((6, 3), np.float32), name: label}
    np.savez(path, **arrays)
    stream = open_arrays(path)
    assert [s.key for s in stream.schema] == ["x"]
    assert next(iter(stream.batches(0, 6))).label.tolist() == label.tolist()


@pytest.mark.parametrize(
    "form", [np.eye(3)[[0, 2, 1, 1, 0, 2]], np.array([[0], [2], [1], [1], [0], [2]])]
)
@pytest.mark.parametrize("name", ["label", "y"])
def test_one_hot_rows_and_columns_of_classes_are_labels_and_no_site(name, form, tmp_path):
    """As a site the labels would be read as states."""
    np.savez(tmp_path / "d.npz", x=np.ones((6, 3), np.float32), **{name: form})
    stream = open_arrays(tmp_path / "d.npz")
    assert [s.key for s in stream.schema] == ["x"]
    assert next(iter(stream.batches(0, 6))).label.tolist() == [0, 2, 1, 1, 0, 2]


def test_an_array_of_rows_called_y_stays_a_site(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((6, 3), np.float32), y=np.ones((6, 2), np.float32))
    assert [s.key for s in open_arrays(path).schema] == ["x", "y"]


def test_steps_of_trajectories_are_columns_where_they_are_whole_numbers(tmp_path):
    path = tmp_path / "d.npz"
    x = np.ones((6, 3), np.float32)
    step, first = np.tile(np.arange(3), 2), np.repeat([-1, 1], 3)
    np.savez(path, x=x, id=np.repeat(["a", "b"], 3), position=step, first_error=first)
    stream = open_arrays(path)
    assert [s.key for s in stream.schema] == ["x"]
    batch = next(iter(stream.batches(0, 6)))
    assert batch.column("position", "x").tolist() == step.tolist()
    assert batch.column("first_error", "x").tolist() == first.tolist()
    np.savez(path, x=x, position=x)
    assert [s.key for s in open_arrays(path).schema] == ["x", "position"]


@pytest.mark.parametrize("kind", [np.longdouble, ">f4", np.float16])
def test_numbers_of_any_width_are_rows(kind, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6).reshape(3, 2).astype(kind))
    rows = next(iter(open_arrays(tmp_path / "a.npz"))).rows["x"]
    assert rows.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
