"""Trainings in memory: the bits of torch's own loop, and what a training may not touch."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.engine.steps import Descent, minimise, seeded, shuffled


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def rows() -> torch.Tensor:
    return 2.0 * torch.randn(17, 3, generator=torch.Generator().manual_seed(3)) - 0.5


@pytest.mark.truth("a plain loop over torch.optim")
@pytest.mark.parametrize(
    "optimiser",
    [
        torch.optim.Adam,
        partial(torch.optim.AdamW, weight_decay=0.3),
        partial(torch.optim.SGD, momentum=0.7),
    ],
)
def test_the_bits_are_those_of_a_plain_loop(optimiser):
    nets: list[Any] = [net(1), net(1)]
    ours, plain, x = *nets, rows()
    own = optimiser(plain.parameters(), lr=0.05)
    expected: list[float] = []
    for part in x.split(5) * 3:
        own.zero_grad()
        loss = plain(part).square().mean() + plain[0].weight.sin().sum()
        loss.backward()
        expected.append(float(loss.detach()))
        own.step()
    losses = Descent("Test", ours.parameters(), 0.05, optimiser).run(
        lambda part: ours(part).square().mean() + ours[0].weight.sin().sum(), x.split(5) * 3
    )
    assert losses == tuple(expected)
    pairs = zip(ours.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_gradient_is_left_behind_and_frozen_weights_stay():
    whole: Any = net(2)
    whole[0].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    kept = torch.full((2,), 7.0)
    whole[2].bias.grad = kept.clone()
    Descent("Test", [whole[0].weight, whole[0].bias], 0.1).run(
        lambda x: whole(x).square().sum(), rows().split(6)
    )
    changed = {n for n, p in whole.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"0.bias"}
    assert whole[0].bias.grad is None
    assert torch.equal(whole[2].bias.grad, kept)


def test_after_stops_the_training_with_no_batch_drawn_in_vain():
    point, drawn = torch.tensor([3.0, -2.0], requires_grad=True), iter(range(100))
    descent = Descent("Test", [point], 0.1)
    losses = descent.run(lambda _: point.square().sum(), drawn, lambda step: step == 6)
    assert len(losses) == descent.n_steps == 7
    assert next(drawn) == 7


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    point = torch.tensor([0.2], requires_grad=True)
    descent = Descent("Test", [point], 0.5)
    with pytest.raises(
        InputError, match=r"Test: expected a finite loss, got nan at step 1\..*0\.5"
    ):
        descent.run(lambda _: point.log().sum(), range(9))


@pytest.mark.truth("the closed form of a ridge regression")
def test_minimise_finds_the_closed_form():
    x = rows().double()
    y = x @ torch.tensor([1.5, -0.3, 0.8]).double() + x[:, 0].sin()
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    minimise(
        lambda: (x @ weight - y).square().sum() + 0.7 * weight.square().sum(), [weight], 50, 1e-14
    )
    expected = torch.linalg.solve(x.T @ x + 0.7 * torch.eye(3).double(), x.T @ y)
    assert torch.allclose(weight.detach(), expected, atol=1e-8)


def test_a_seed_orders_and_leaves_the_generator():
    before = torch.get_rng_state()
    with seeded(5) as draw:
        first = torch.rand(2), list(shuffled(6, 2, draw))
    with seeded(5) as draw:
        second = torch.rand(2), list(shuffled(6, 2, draw))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
    assert sorted(first[1][:6]) == list(range(6))
    assert first[1][:6] != first[1][6:]
    assert torch.equal(torch.get_rng_state(), before)
