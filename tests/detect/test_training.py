import pytest
import torch

from sonde.core.state import equal
from sonde.detect._training import Weights, generator, minibatches, xavier


def _loss(w, b):
    return (w.square().sum() - 1.0).square() + (w @ b).sin().sum()


@pytest.mark.truth("torch.optim.Adam and AdamW")
@pytest.mark.parametrize("decoupled", [False, True])
def test_steps_are_those_of_the_library(decoupled):
    start = torch.randn(3, 2, generator=generator(1)), torch.randn(2, generator=generator(2))
    weights = Weights.of(*(v.double() for v in start))
    live = weights.live()
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimiser = kind(live, lr=0.05, weight_decay=0.1)
    for _ in range(7):
        optimiser.zero_grad()
        _loss(*live).backward()
        optimiser.step()
        mine = weights.live()
        gradients = torch.autograd.grad(_loss(*mine), mine)
        weights = weights.stepped(gradients, 0.05, 0.1, decoupled)
    assert weights.steps == 7
    for found, want in zip(weights.values, live, strict=True):
        torch.testing.assert_close(found, want.detach(), rtol=1e-12, atol=1e-12)


def test_a_step_leaves_the_weights_before_it_as_they_were():
    weights = Weights.of(torch.ones(3))
    weights.stepped([torch.ones(3)], 0.1)
    assert equal(weights, Weights.of(torch.ones(3)))


def test_random_numbers_follow_from_the_key_alone():
    a, b, c = (torch.randn(4, generator=generator(*k)) for k in ((1, "a"), (1, "a"), (1, "b")))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_minibatches_hold_every_row_once():
    parts = list(minibatches(23, 5, generator(0)))
    assert sorted(torch.cat(parts).tolist()) == list(range(23))
    assert all(5 <= len(p) < 10 for p in parts)
    assert [len(p) for p in minibatches(3, 5, generator(0))] == [3]


@pytest.mark.truth("variance 2 / (fan in + fan out)")
def test_weights_begin_with_the_variance_of_xavier():
    found = xavier(generator(0), 200, 100)
    assert float(found.var()) == pytest.approx(2 / 300, rel=0.03)
