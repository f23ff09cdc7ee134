"""DecoupleQ: scales against least squares, planted grids, every code, other methods."""

from itertools import product

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import GPTQ, DecoupleQ, layer_grams
from sonde.compress.decouple_q import best_scales
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import Grid


def drawn(n_in: int, n_out: int, seed: int, n: int = 60) -> tuple[nn.Sequential, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(n_in, n_out)).double().requires_grad_(False)
    net[0].weight.data = torch.randn(n_out, n_in, generator=draw, dtype=torch.float64)
    mix = torch.randn(n_in, n_in, generator=draw, dtype=torch.float64)
    return net, torch.randn(n, n_in, generator=draw, dtype=torch.float64) @ mix


def error(net: nn.Sequential, new: nn.Sequential, x: torch.Tensor) -> float:
    gap = new[0].values(torch.float64) - net[0].weight
    return float((x @ gap.T).square().sum())


@pytest.mark.truth("least squares of the outputs on the columns of every group")
def test_scales_are_the_least_squares_fit():
    net, x = drawn(11, 4, 1)
    draw = torch.Generator().manual_seed(2)
    signed = torch.randint(-2, 2, (4, 11), generator=draw).double()
    padded = nn.functional.pad(signed, (0, 1))
    scale, offset = best_scales(net[0].weight, x.T @ x, padded, Grid(2, 4))
    for i in range(4):
        columns = []
        for start in (0, 4, 8):
            mask = torch.zeros(11, dtype=torch.float64)
            mask[start : start + 4] = 1
            columns += [x @ (signed[i] * mask), x @ mask]
        # The codes of one group are all equal here: the solution of least norm, at any rounding.
        a, aim = torch.stack(columns, 1), (x @ net[0].weight[i])[:, None]
        best = torch.linalg.lstsq(a, aim, rcond=1e-10, driver="gelsd")
        wanted = best.solution[:, 0].reshape(3, 2)
        torch.testing.assert_close(scale[i], wanted[:, 0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(offset[i], wanted[:, 1], rtol=1e-7, atol=1e-9)


@pytest.mark.essential
@pytest.mark.truth("every code of a row, with the best scale and offset of each")
def test_no_row_is_below_the_best_of_all_codes_and_most_are_near():
    ratios = []
    for seed in range(6):
        net, x = drawn(4, 3, seed)
        new = DecoupleQ(bits=2, group=4).plan(net, {"calibration": x}).fold(net)
        for i in range(3):
            least = float("inf")
            for codes in product(range(-2, 2), repeat=4):
                q = torch.tensor(codes, dtype=torch.float64)
                a = torch.stack([x @ q, x.sum(1)], 1)
                y = x @ net[0].weight[i]
                fit = torch.linalg.lstsq(a, y[:, None], driver="gelsd", rcond=1e-10).solution[:, 0]
                least = min(least, float((a @ fit - y).square().sum()))
            gap = new[0].values(torch.float64)[i] - net[0].weight[i]
            found = float((x @ gap).square().sum())
            assert found >= least * (1 - 1e-6)
            ratios.append(found / float((x @ net[0].weight[i]).square().sum()))
    assert sorted(ratios)[len(ratios) // 2] < 0.02


@pytest.mark.truth("codes and scales that were planted")
def test_a_planted_grid_is_found_again():
    net, x = drawn(16, 12, 3, 200)
    draw = torch.Generator().manual_seed(4)
    scale = (torch.rand(12, 2, generator=draw) + 0.2).bfloat16().double()
    scale[3, 0] *= -1
    offset = (torch.randn(12, 2, generator=draw) / 4).bfloat16().double()
    codes = torch.randint(-2, 2, (12, 2, 8), generator=draw).double()
    codes[:, :, :2] = torch.tensor([-2.0, 1.0])  # the whole range, so the first grid is near
    planted = codes * scale[..., None] + offset[..., None]
    net[0].weight.data = planted.reshape(12, 16)
    new = DecoupleQ(bits=2, group=8).plan(net, {"calibration": x}).fold(net)
    exact = (new[0].values(torch.float64) == net[0].weight).all(1)
    assert int(exact.sum()) >= 9  # from the first grid not every row gets there


@pytest.mark.truth("the errors of GPTQ and RTN, on the rows themselves")
def test_errors_are_below_those_of_gptq_and_rtn():
    net, x = drawn(21, 9, 5, 80)
    grams = layer_grams(net, open_inputs(Model(net), x), exact=True, progress=False)
    plan = DecoupleQ(bits=2, group=8).plan(net, {"calibration": grams})
    new, other = (p.fold(net) for p in (plan, GPTQ(2, 8).plan(net, {"calibration": grams})))
    assert plan.figures["loss"] * 80 == pytest.approx(error(net, new, x), rel=1e-6)
    assert error(net, new, x) < 0.8 * error(net, other, x)
    assert plan.figures["loss"] < plan.figures["loss_rtn"]
    assert DecoupleQ(bits=None).plan(net, {"calibration": grams}).fold(net) is net
    with pytest.raises(InputError, match="rounds of at least 1, got 0"):
        DecoupleQ(rounds=0)
