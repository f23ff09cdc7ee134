"""Labels of retrieved items against a loop over rows and items."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.train import gain_labels


@pytest.mark.truth("a loop over rows and items")
def test_labels_and_weights_are_those_of_a_loop():
    loss = torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = torch.linspace(-0.1, 1.1, 20, dtype=torch.float64)
    for drop in (True, False):
        label, weight = gain_labels(loss, alone, temperature=0.3, drop_harmful=drop)
        for i, row in enumerate(loss.tolist()):
            base = float(alone[i])
            raised = [math.exp((base - v) / 0.3) if v <= base or not drop else 0.0 for v in row]
            assert float(weight[i]) == float(sum(raised) > 0)
            for j, value in enumerate(raised):
                assert float(label[i, j]) == pytest.approx(value / (sum(raised) or 1.0))
    assert float(weight.sum()) == 20


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match=r"gain_labels: expected losses \(row, item\)"):
        gain_labels(torch.ones(2, 3), torch.ones(2), temperature=0.0)
