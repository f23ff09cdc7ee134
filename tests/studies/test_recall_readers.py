"""Readers of the study ``recall`` with shared and with separate maps of the prefix."""

import pytest
import torch

from sonde_studies.recall import DIM, HIDDEN, WIDE, _data, _loss, _Reader


@pytest.mark.truth("parameters by hand: two more maps of each attention, against wider layers")
def test_separate_maps_cost_as_many_parameters_as_wider_layers():
    size = {
        how: sum(p.numel() for p in _Reader(how).parameters())
        for how in ("prefix", "separate", "wide")
    }
    assert size["separate"] - size["prefix"] == 2 * 2 * (DIM * DIM + DIM)
    assert size["wide"] - size["prefix"] == 2 * (WIDE - HIDDEN) * (2 * DIM + 1)
    assert size == {"prefix": 18_680, "separate": 22_904, "wide": 22_840}


def test_separate_maps_are_trained():
    torch.manual_seed(0)
    net, (ids, side, answer) = _Reader("separate"), _data("short first", 0)
    for layer in net.layers:
        torch.nn.init.normal_(layer.out.weight)
    _loss(net, ids[:8], side[:8], answer[:8]).backward()
    for layer in net.layers:
        assert all(
            float(layer.maps[name].weight.grad.norm()) > 0
            for name in ("prefix_key", "prefix_value")
        )
