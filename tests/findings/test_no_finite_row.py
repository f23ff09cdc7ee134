"""A model whose every answer is NaN or infinite gets a report."""

import pytest
import torch
from torch import nn

import sonde


@pytest.mark.slow
def test_labels_of_a_model_without_a_finite_answer_are_not_judged():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    net.get_parameter("2.weight").data[:, 0] = float("inf")
    net.get_parameter("0.bias").data[0] = 9.0
    rows = [{"x": torch.randn(4), "label": i % 3} for i in range(90)]
    report = sonde.scan(net, rows, label_column="label").json()
    assert report["answers"]["value"] == 0.0
    assert report["answers"]["n_rows"] == 90
    assert report["labels"] is None
    assert "SND001" in {f["code"] for f in report["findings"]}
