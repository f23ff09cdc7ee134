"""Masks on weights: counts that stay, which weights go and come, and a density for each layer."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.train import SparseTraining


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))


def run(module, made, n, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(16, 12, generator=draw)
        made.zero_grad()
        (module(x) - x[:, :3]).square().mean().backward()
        made.step()


@pytest.mark.parametrize("score", ["gradient", "magnitude", "random", "congruity"])
def test_counts_stay_while_masks_move(score):
    module = net()
    made = torch.optim.Adam(module.parameters(), 1e-2)
    whole = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    with SparseTraining(0.25, score, period=3, steps=50).on(module, made, whole) as masks:
        first = {n: m.clone() for n, m in masks.active.items()}
        run(module, made, 4)
        for name, mask in masks.active.items():
            assert int(mask.sum()) == int(first[name].sum())
            assert not torch.equal(mask, first[name])
            assert torch.count_nonzero(module.state_dict()[name][~mask]) == 0
        assert masks.density == pytest.approx(0.25, abs=0.01)


@pytest.mark.truth("a loop over weights: smallest active go, largest gradients come")
def test_which_weights_go_and_come():
    module = net()
    made = torch.optim.SGD(module.parameters(), 0.0)
    with SparseTraining(0.5, period=1, steps=10**9).on(module, made) as masks:
        first, weight = masks.active["0.weight"].clone(), module[0].weight.detach().clone()
        run(module, made, 1)
        now, slope = masks.active["0.weight"], module[0].weight.grad
        n = round(0.3 * int(first.sum()))
        active = first.nonzero().tolist()
        gone = sorted(active, key=lambda at: abs(float(weight[*at])))[:n]
        free = (~first).nonzero().tolist()
        come = sorted(free, key=lambda at: -abs(float(slope[*at])))[:n]
        assert sorted(gone) == (first & ~now).nonzero().tolist()
        assert sorted(come) == (now & ~first).nonzero().tolist()


@pytest.mark.truth("a loop over weights: least agreement with the round's direction goes")
def test_every_round_has_a_direction_of_its_own():
    module = net()
    made = torch.optim.SGD(module.parameters(), 0.0)
    draw, asked = torch.Generator().manual_seed(3), []

    def direction():
        asked.append(
            {n: torch.randn(p.shape, generator=draw) for n, p in module.named_parameters()}
        )
        return asked[-1]

    start = {n: torch.rand(p.shape, generator=draw) < 0.5
             for n, p in module.named_parameters() if p.ndim > 1}  # fmt: skip
    rule = SparseTraining(0.5, "congruity", period=1, steps=10**9)
    with rule.on(module, made, direction, start) as masks:
        assert all(torch.equal(masks.active[n], m) for n, m in start.items())
        assert all(torch.count_nonzero(module.state_dict()[n][~m]) == 0 for n, m in start.items())
        for turn in range(2):
            first = masks.active["0.weight"].clone()
            run(module, made, 1, seed=turn)
            agree = module[0].weight.grad * asked[turn]["0.weight"]
            n = round(0.3 * int(first.sum()))
            gone = sorted(first.nonzero().tolist(), key=lambda at: float(agree[*at]))[:n]
            come = sorted((~first).nonzero().tolist(), key=lambda at: -float(agree[*at]))[:n]
            now = masks.active["0.weight"]
            assert sorted(gone) == (first & ~now).nonzero().tolist()
            assert sorted(come) == (now & ~first).nonzero().tolist()
    assert len(asked) == 2
    with pytest.raises(InputError, match=r"a mask of bool for each of"):
        rule.on(module, made, direction, {"0.weight": start["0.weight"]}).__enter__()
    with pytest.raises(InputError, match=r"a mask of bool for each of"):
        rule.on(module, made, direction, {n: m.float() for n, m in start.items()}).__enter__()


@pytest.mark.truth("bits of a training without masks")
def test_a_density_of_one_is_plain_training():
    plain, masked = net(), net()
    for module, dense in ((plain, False), (masked, True)):
        made = torch.optim.Adam(module.parameters(), 1e-2)
        if dense:
            with SparseTraining(1.0, period=2).on(module, made):
                run(module, made, 5)
        else:
            run(module, made, 5)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), masked.parameters(), strict=True)
    )


@pytest.mark.truth("closed form of the allocation")
def test_small_layers_are_denser():
    shapes = {"wide": (100, 200), "small": (4, 5), "conv": (8, 6, 3, 3)}
    share = SparseTraining(0.1, allocation="erdos_renyi").shares(shapes)
    assert share["small"] == 1
    assert share["wide"] / share["conv"] == pytest.approx((300 / 20_000) / (20 / 432))
    total = share["wide"] * 20_000 + 20 + share["conv"] * 432
    assert total == pytest.approx(0.1 * 20_452)
    module = net()
    made = torch.optim.SGD(module.parameters(), 0.1)
    with pytest.raises(InputError, match="direction= together with score='congruity'"):
        SparseTraining(score="congruity").on(module, made).__enter__()
