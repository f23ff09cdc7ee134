"""Coordinate rounding: no single code can be bettered, the loss falls, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import GPTQ, CoordinateRounding, layer_grams
from sonde.compress._grid import each_entry
from sonde.compress.gptq import loss_of
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import Quantised


def drawn() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(11, 9)).eval()
    net[0].weight.data *= torch.logspace(-2, 2, 9)[:, None]  # steps on both sides of 1
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(80, 11, generator=draw) @ torch.randn(11, 11, generator=draw)
    x[:, 4] = 0.0
    return net, x


@pytest.mark.truth("every other code of every single weight")
@pytest.mark.parametrize("start", ["gptq", "rtn"])
def test_no_other_code_of_one_weight_is_better(start):
    net, x = drawn()
    grams = layer_grams(net, open_inputs(Model(net), x), exact=True, progress=False)
    plan = CoordinateRounding(bits=2, group=4, start=start).plan(net, {"calibration": grams})
    change, new = plan.changes["0.weight"], net[0].weight.detach().double()
    h, found = x.double().T @ x.double() / 80, change.of(new)
    least = loss_of(new - found, h)
    assert isinstance(change, Quantised)
    scale, offset = (each_entry(v, 4, 11) for v in (change.scale, change.offset))
    for j in range(11):
        for code in range(4):
            other = found.clone()
            other[:, j] = (code - 2) * scale[:, j] + offset[:, j]
            assert bool((loss_of(new - other, h) >= least - 1e-6).all())
    assert plan.figures["loss"] == pytest.approx(float(least.sum()), rel=1e-4)
    assert plan.figures["loss"] < plan.figures["loss_start"]


def test_it_lies_below_gptq():
    net, x = drawn()
    found, other = (
        rule(bits=2, group=4).plan(net, {"calibration": x}).figures["loss"]
        for rule in (CoordinateRounding, GPTQ)
    )
    assert found < other
    assert CoordinateRounding(bits=None).plan(net, {"calibration": x}).fold(net) is net


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(InputError, match="sweeps of at least 1, got 0"):
        CoordinateRounding(sweeps=0)
    with pytest.raises(InputError, match="CoordinateRounding: expected whole bits from 2 to 8"):
        CoordinateRounding(bits=1)
