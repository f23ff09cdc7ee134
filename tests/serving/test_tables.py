"""Rows of a table: the columns that lie far from those that calibrated."""

import csv

import numpy as np
import pytest

import sonde
from serving_case import net, served
from sonde.detect import Mahalanobis

NAMES = ["age", "dose", "weight", "pulse", "flag"]
CENTRE, SCALE = np.array([40.0, 0.5, 70.0, 65.0, 1.0]), np.array([12.0, 0.1, 9.0, 7.0, 0.0])


def table(path, n, seed):
    values = CENTRE + SCALE * np.random.default_rng(seed).normal(size=(n, 5))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        writer.writerows(values.tolist())
    return values


@pytest.mark.truth("numpy's median and median distance of the calibrating rows")
def test_answers_name_the_unusual_columns_of_a_row(tmp_path):
    model = net()
    table(tmp_path / "fit.csv", 90, 0)
    known = table(tmp_path / "held.csv", 80, 1)
    columns = ",".join(NAMES)
    stream = sonde.read(model, tmp_path / "fit.csv", sites=["1"], number_columns=columns)
    fitted = sonde.fit(Mahalanobis(), stream, calibrate=0, progress=False)
    probe = sonde.calibrate(
        fitted, model, tmp_path / "held.csv", number_columns=columns, progress=False
    )
    usual = dict(zip(NAMES, CENTRE.tolist(), strict=True))
    odd = {**usual, "weight": -400.0, "age": 190.0, "flag": 2.0}
    with served(model, probe) as client:
        found = client.post("/predict", json={"inputs": [usual, odd]}).json()["answers"]
        without = {name: value for name, value in usual.items() if name != "dose"}
        client.post("/predict", json={"inputs": [usual, without, without]})
        state = vars(client.app)["state"].service.state()
    assert found[0]["columns"] == []
    assert [one["name"] for one in found[1]["columns"]] == ["flag", "weight", "age"]
    assert found[1]["columns"][0] == {"name": "flag", "value": 2.0, "z": None}
    for one in found[1]["columns"][1:]:
        column = known[:, NAMES.index(one["name"])]
        median = np.median(column)
        scale = 1.4826 * np.median(np.abs(column - median))
        assert one["value"] == odd[one["name"]]
        assert one["z"] == pytest.approx((one["value"] - median) / scale, rel=1e-12)
    assert found[1]["alarm"], "the state names columns of alarms"
    assert sorted(state["columns"]) == [("age", 1), ("flag", 1), ("weight", 1)]
    assert [one["columns"] for one in state["alarms"]] == ["flag, weight, age"]
    assert state["wrong"] == [("dose", 2)]
    assert "columns" not in _without_scales(model, fitted, usual)


def _without_scales(model, fitted, row):
    with served(model, fitted) as client:
        return client.post("/predict", json={"inputs": [row]}).json()["answers"][0]
