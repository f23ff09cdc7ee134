"""Frames between keys: interpolation, replacement, and what lies outside."""

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core import EditContext, InputError, ShapeError, Site
from sonde.edit import TemporalCorrection
from sonde.tap import Tap, editing

SITE = Site("0")


@pytest.mark.truth("numpy's interp, unit by unit")
def test_a_linear_net_is_interpolated_between_its_keys():
    torch.manual_seed(0)
    net, keys = nn.Sequential(nn.Linear(3, 2).double()), (1, 4, 6)
    frames = torch.randn(2, 8, 3, dtype=torch.float64)
    with torch.no_grad():
        low, plain = net(frames[:, list(keys)]), net(frames)
    x = TemporalCorrection(keys).apply(plain, SITE, EditContext(others={"key": low}))
    for example in range(2):
        for unit in range(2):
            column = low[example, :, unit].numpy()
            expected = np.interp(np.arange(1, 7), keys, column)
            np.testing.assert_allclose(x[example, 1:7, unit].numpy(), expected, atol=1e-12)
    assert torch.equal(x[:, 0], plain[:, 0])
    assert torch.equal(x[:, 7], plain[:, 7])


def test_all_positions_as_keys_replace_and_half_strength_lies_half_way():
    x, low = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    context = EditContext(others={"key": low})
    assert torch.equal(TemporalCorrection((0, 1, 2)).apply(x, SITE, context), low)
    half = TemporalCorrection((0, 1, 2), strength=0.5).apply(x, SITE, context)
    torch.testing.assert_close(half, (x + low) / 2)
    alone = TemporalCorrection((1,)).apply(x, SITE, EditContext(others={"key": low[:, 1:2]}))
    assert torch.equal(alone, torch.stack([x[:, 0], low[:, 1], x[:, 2]], 1))


def test_keys_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="rise"):
        TemporalCorrection((2, 1))
    context = EditContext(others={"key": torch.zeros(1, 3, 2)})
    with pytest.raises(ShapeError, match="keys below 3"):
        TemporalCorrection((0, 1, 3)).apply(torch.zeros(1, 3, 2), SITE, context)
    assert sonde.edit.TemporalCorrection is TemporalCorrection


@pytest.mark.truth("the rest of the net applied to the states blended by hand")
def test_it_runs_on_a_live_model_with_a_run_over_the_keys_alone():
    torch.manual_seed(0)
    net, x, keys = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 6, 3), (1, 4)
    with torch.no_grad():
        with Tap(net, "0") as tap:
            net(x[:, keys] + 1)
        with editing(net, TemporalCorrection(keys), "0", others={"key": tap.rows}):
            got = net(x)
        key, states = tap.rows["0:out"], net[0](x)
        for t in range(1, 5):
            states[:, t] = key[:, 0] + (key[:, 1] - key[:, 0]) * (t - 1) / 3
        torch.testing.assert_close(got, net[1](states))
