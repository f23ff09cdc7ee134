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


def test_an_array_of_rows_called_y_stays_a_site(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((6, 3), np.float32), y=np.ones((6, 2), np.float32))
    assert [s.key for s in open_arrays(path).schema] == ["x", "y"]
