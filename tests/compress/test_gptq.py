"""GPTQ: against explicit elimination and exhaustive search, its guard, and what is refused."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import GPTQ, RTN, layer_grams
from sonde.compress.gptq import loss_of, solved
from sonde.core.errors import InputError, StateError
from sonde.data import open_inputs


def drawn(draw: torch.Generator, n_in: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    mix = torch.randn(n_in, n_in, generator=draw, dtype=torch.float64)
    rows = torch.randn(20, n_in, generator=draw, dtype=torch.float64) @ mix
    return torch.randn(1, n_in, generator=draw, dtype=torch.float64), rows.T @ rows


def value(codes: torch.Tensor) -> torch.Tensor:
    return (codes - 2) * 0.6


@pytest.mark.truth("columns removed from the inverse one by one")
def test_codes_are_those_of_explicit_elimination():
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        w, h = drawn(draw)
        scale = torch.full_like(w, 0.6)
        found = solved(w, scale, torch.zeros_like(w), h, 2, 1e-9)
        damped = h + 1e-9 * h.diagonal().mean() * torch.eye(3, dtype=torch.float64)
        inverse, left, codes = torch.linalg.inv(damped), w[0].clone(), []
        for i in range(3):
            code = (left[i] / 0.6 + 2).round().clamp(0, 3)
            codes.append(float(code))
            left = left - (left[i] - value(code)) / inverse[i, i] * inverse[i]
            inverse = inverse - torch.outer(inverse[i], inverse[i]) / inverse[i, i]
        assert found[0].tolist() == codes


@pytest.mark.truth("exhaustive search over all codes")
def test_the_loss_lies_between_the_best_and_plain_rounding_in_the_mean():
    draw = torch.Generator().manual_seed(1)
    totals = torch.zeros(3, dtype=torch.float64)
    every = torch.tensor(list(product(range(4), repeat=3)), dtype=torch.float64)
    for _ in range(100):
        w, h = drawn(draw)
        codes = solved(w, torch.full_like(w, 0.6), torch.zeros_like(w), h, 2, 0.01)
        plain = (w / 0.6 + 2).round().clamp(0, 3)
        best = loss_of(w - value(every), h).min()
        losses = [best, *(loss_of(w - value(c), h)[0] for c in (codes, plain))]
        assert losses[1] >= best - 1e-9
        totals += torch.stack(losses)
    assert totals[0] < totals[1] < totals[2]


def nets() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 7)).eval()
    mix = torch.randn(20, 20, generator=torch.Generator().manual_seed(3))
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(4)) @ mix
    x[:, 5] = 0.0
    return net, x


@pytest.mark.parametrize("damp", [0.01, 10.0])
def test_the_guard_keeps_every_row_below_plain_rounding(damp):
    net, x = nets()
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    plan = GPTQ(bits=2, group=7, damp=damp).plan(net, {"calibration": grams})
    assert plan.figures["loss"] < plan.figures["loss_rtn"]
    new, plain = plan.fold(net), RTN(bits=2, group=7).plan(net).fold(net)
    h = grams.of_layers(["0"]).second_moment
    w = net[0].weight.detach().double()
    found, other = (loss_of(w - m[0].values(torch.float64), h) for m in (new, plain))
    assert bool((found <= other + 1e-9).all())
    assert float(found.sum()) < (0.9 if damp < 1 else 1.0) * float(other.sum())


def test_one_row_a_scaled_input_and_a_half_type_are_taken():
    net, x = nets()
    one = open_inputs(Model(net), x[:1])
    assert GPTQ().plan(net, {"calibration": one}).packed == {"0.weight", "2.weight"}
    rule, codes = GPTQ(layers=("0",)), []
    for c in (1.0, 1024.0, 2.0**-10):
        change: Any = rule.plan(net, {"calibration": x * c}).changes["0.weight"]
        codes.append(change.codes)
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


def test_what_cannot_be_used_is_refused():
    net, x = nets()
    other, _ = nets()
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    other[0].bias.data += 1
    with pytest.raises(StateError, match="measured on another model: its weights differ"):
        GPTQ().plan(other, {"calibration": grams})
    with pytest.raises(InputError, match="got no 'calibration'"):
        GPTQ().plan(net)
    with pytest.raises(InputError, match="damp above 0, got 0"):
        GPTQ(damp=0.0)
