"""Rows of patients whom a net is to forget."""

import pytest
import torch
from sklearn.datasets import load_diabetes

from sonde_studies._patients import patients


@pytest.mark.truth("scikit-learn's own table: patients in the order of their progression")
def test_each_patient_has_one_row_in_one_part_and_a_third_as_label():
    table = load_diabetes(scaled=False)
    parts = patients(3)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "forget": 60, "retain": 200, "held": 182,
    }  # fmt: skip
    rows = {int(r["id"].split()[1]): r for part in parts.values() for r in part}
    assert sorted(rows) == list(range(442))
    ages = torch.tensor(table.data[:, 0])
    drawn = torch.stack([rows[i]["input"][0] for i in range(442)]).double()
    torch.testing.assert_close(drawn, (ages - ages.mean()) / ages.std(), rtol=1e-4, atol=1e-4)
    progress = table.target
    by_label = [[progress[i] for i in rows if rows[i]["label"] == k] for k in range(3)]
    assert max(by_label[0]) <= min(by_label[1])
    assert max(by_label[1]) <= min(by_label[2])
    assert [len(x) for x in by_label] == [148, 147, 147]
