"""The arm of routed units without a map behind the layer."""

import pytest
import torch
from torch import nn

from sonde_studies.routed_dimensions import DIM, _Added, _routed


@pytest.mark.truth("the network's last map over hidden units that are switched off by hand")
def test_the_arm_without_a_map_holds_no_input():
    torch.manual_seed(0)
    layer = _routed()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.3)
    up, act, down = layer.experts[0].children()
    assert layer.line is not None
    x = torch.randn(5, DIM)
    for row, found in zip(x, _Added(layer)(x), strict=True):
        on = torch.zeros(layer.n_experts)
        on[[0, *(1 + i for i in layer.line(row).topk(layer.k).indices.tolist())]] = 3.0
        torch.testing.assert_close(found, down(act(up(row)) * on.repeat_interleave(8)))
