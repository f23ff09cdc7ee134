"""The arms of routed states: the numbers that a row meets in each, and the dimensions in use."""

import pytest
import torch
from torch import nn

from sonde_studies.routed_states import (
    FUSED_WIDTH,
    NARROW,
    NARROW_WIDTH,
    SHARED,
    STATE,
    K,
    _dense,
    _routed,
    share_in_use,
)


def met(net):
    """Count the numbers that one row meets: with a gradient, and those of the routers."""
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    net(torch.randn(1, net.start.in_features)).sum().backward()
    return sum(
        p.numel() if "line" in name else int((p.grad != 0).sum())
        for name, p in net.named_parameters()
        if p.grad is not None
    )


@pytest.mark.truth("weights that can change the answer to a row, counted from gradients")
def test_a_row_meets_as_many_numbers():
    torch.manual_seed(0)
    routed = met(_routed())
    assert met(_dense(NARROW, NARROW_WIDTH)) == pytest.approx(routed, rel=0.02)
    assert met(_routed(k=K + SHARED, shared=0)) == pytest.approx(routed, rel=0.03)
    assert met(_routed(width=FUSED_WIDTH, fusion="groups")) == pytest.approx(routed, rel=0.02)


@pytest.mark.truth("squares of two rows added by hand")
def test_dimensions_in_use():
    states = torch.tensor([[3.0, 0.0, -9.0, 1.0], [1.0, -1.0, 1.0, 1.0]])
    assert share_in_use(states[:1]) == pytest.approx(2 / 4)  # 81 of 91 are less than 0.9
    assert share_in_use(states) == pytest.approx((2 + 4) / 8)
    gauss = torch.randn(2_000, STATE, generator=torch.Generator().manual_seed(0))
    assert 0.45 < share_in_use(gauss) < 0.6
