"""Convolutions whose filters are chosen for each input."""

from typing import Any

import pytest
import torch
from torch import nn

import models
from sonde import Model
from sonde.compress import DynamicPrune, hot_filters
from sonde.compress.dynamic_prune import DynamicConv
from sonde.core import InputError, SiteError
from sonde.data import open_inputs


@pytest.mark.truth("a loop that adds filters, hottest first")
def test_the_hottest_filters_reach_the_share():
    draw = torch.Generator().manual_seed(4)
    z = torch.randn(5, 9, 3, 4, generator=draw) * torch.rand(5, 9, 1, 1, generator=draw)
    z[:, 2] = 0.0
    found = hot_filters(z, 0.7)
    for row, own in zip(z.abs().mean((2, 3)).double(), found, strict=True):
        order = sorted(range(9), key=lambda i, r=row: -float(r[i]))
        sums, kept = 0.0, set()
        while sums < 0.7 * float(row.sum()):
            kept.add(order[len(kept)])
            sums = sum(float(row[i]) for i in kept)
        assert set(own.nonzero()[:, 0].tolist()) == kept
    assert hot_filters(z, 1.0).sum(1).tolist() == [8] * 5


@pytest.mark.truth("the convolution with all filters, masked afterwards")
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_only_chosen_filters_are_computed(mode):
    torch.manual_seed(2)
    conv = nn.Conv2d(6, 10, 3, stride=2, padding=1, padding_mode=mode)
    gate = DynamicConv(conv, 0.8, 2, 5).eval()
    x = torch.randn(7, 6, 9, 8)
    x[:, 3] = 0.0
    with torch.no_grad():
        found = gate(x)
        assert gate.chosen is not None
        assert len(gate.chosen.unique(dim=0)) > 1
        torch.testing.assert_close(found, conv(x) * gate.chosen[:, :, None, None])


def planted():
    """Return a net whose filters each read one of two channels, and inputs that use one."""
    torch.manual_seed(1)
    net: Any = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight[:4, 1] = 0.0
        net[0].weight[4:, 0] = 0.0
    x = torch.rand(128, 2, 6, 6) + 0.5
    x[::2, 1] = 0.0
    x[1::2, 0] = 0.0
    return Model(net), x


@pytest.mark.slow
def test_a_predictor_learns_filters_that_the_class_decides():
    model, x = planted()
    method = DynamicPrune(0.999, layers=("0",), steps=150, rate=0.02)
    found = method.fit(model, open_inputs(model, x))
    assert found.losses[-1] < found.losses[0]
    assert found.saved == 0.5
    with torch.no_grad():
        answers, whole = found.module(x), model.module(x)
    gate: Any = found.module.get_submodule("0")
    plain: Any = model.module
    assert torch.equal(gate.chosen, hot_filters(plain[0](x), 0.999))
    assert float((answers.softmax(1) - whole.softmax(1)).abs().max()) < 0.05
    few = DynamicPrune(layers=("0",), steps=3).fit(model, open_inputs(model, x[:2]))
    assert len(few.losses) == 3


@pytest.mark.truth("the net itself: with all heat nothing is left out")
def test_all_heat_is_the_net_and_the_saving_is_that_of_the_targets():
    net: Any = models.cnn()
    model = Model(net)
    x = torch.randn(70, 1, 12, 12, generator=torch.Generator().manual_seed(6))
    whole = DynamicPrune(1.0, steps=0).fit(model, open_inputs(model, x))
    with torch.no_grad():
        assert torch.equal(whole.module(x), model.module(x))
        z = net.conv2(net.act1(net.conv1(x)))
    part = DynamicPrune(0.6, steps=0).fit(model, open_inputs(model, x))
    expected = 1 - float(hot_filters(z, 0.6).double().mean())
    assert part.saved == pytest.approx(expected)
    both = DynamicPrune(0.6, layers=("conv1", "conv2"), steps=0).fit(model, open_inputs(model, x))
    with torch.no_grad():
        first = hot_filters(net.conv1(x), 0.6).double().mean(1)
        second = hot_filters(z, 0.6).double().mean(1)
    sizes = 8 * 9 * 12 * 12, 16 * 8 * 9 * 6 * 6
    done = float(first.mean()) * sizes[0] + float((first * second).mean()) * sizes[1]
    assert both.saved == pytest.approx(1 - done / sum(sizes))


def test_what_is_no_plain_convolution_is_refused():
    model = Model(models.cnn())
    x = open_inputs(model, torch.randn(4, 1, 8, 8))
    with pytest.raises(SiteError, match="'fc'"):
        DynamicPrune(layers=("fc",)).fit(model, x)
    with pytest.raises(InputError, match="two inputs or more to train on, got 1"):
        DynamicPrune().fit(model, open_inputs(model, torch.randn(1, 1, 8, 8)))
    with pytest.raises(InputError, match="heat in"):
        DynamicPrune(0.0)
