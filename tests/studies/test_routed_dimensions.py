"""The arms of routed units, and the numbers that each uses for a row."""

import pytest
import torch
from torch import nn

from sonde_studies.routed_dimensions import (
    DIM,
    MAPPED_PART,
    PART,
    PARTS,
    SHARED,
    WIDE_PART,
    K,
    _routed,
)


@pytest.mark.truth("the network's last map over hidden units that are switched off by hand")
def test_an_arm_holds_no_input():
    torch.manual_seed(0)
    added = _routed()
    layer = added.layer
    for p in layer.parameters():
        nn.init.normal_(p, std=0.3)
    up, act, down = layer.experts[0].children()
    assert layer.line is not None
    x = torch.randn(5, DIM)
    for row, found in zip(x, added(x), strict=True):
        on = torch.zeros(layer.n_experts)
        on[[0, *(1 + i for i in layer.line(row).topk(layer.k).indices.tolist())]] = 3.0
        torch.testing.assert_close(found, down(act(up(row)) * on.repeat_interleave(8)))


@pytest.mark.truth("weights that can change the output of a row, counted from gradients")
def test_arms_on_fusion_use_as_many_numbers_for_a_row():
    used = {}
    for name, part, given in (
        ("groups", PART, {"fusion": "groups"}),
        ("wide", WIDE_PART, {}),
        ("full", MAPPED_PART, {"fusion": "dense"}),
    ):
        torch.manual_seed(0)
        net = _routed(part, **given)
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
        net(torch.randn(1, DIM)).sum().backward()
        grads = {n: p.grad for n, p in net.named_parameters() if "line" not in n}
        used[name] = sum(int((g != 0).sum()) for g in grads.values() if g is not None)
    on = K + SHARED
    assert used["groups"] == on * PART * (DIM + 1 + PART + PARTS) + PARTS * PART * DIM + DIM
    assert used["wide"] == pytest.approx(used["groups"], rel=0.02)
    assert used["groups"] < used["full"] < 1.1 * used["groups"]
