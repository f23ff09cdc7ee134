"""Texts that small language models write have their tokens, and reward is followed uphill."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from sonde_studies._language import _text, language_model, policy_loss, sampled, tokens_of
from sonde_studies.worlds.chains import STOP, WORDS


def test_what_a_model_writes_has_the_tokens_that_it_drew():
    """Also where two digits stand side by side, as they do in what an untrained model writes."""
    model = language_model(WORDS, 24, seed=0, width=16, layers=1)
    texts, chances = sampled(model, ["1+2=<"] * 40, STOP, np.random.default_rng(0))
    assert [len(ids) for ids in model.processor(texts)["input_ids"]] == [*map(len, chances)]
    ids = tokens_of(model, ["1+2=<" + text for text in texts])
    likely = model.module(ids).logits[:, :-1, 1:].double().log_softmax(2)
    drawn = likely.gather(2, (ids[:, 1:, None] - 1).clamp(min=0))[..., 0].exp()
    for row, chance in zip(drawn[:, 4:], chances, strict=True):
        torch.testing.assert_close(row[: len(chance)].detach(), chance, rtol=1e-5, atol=0.0)
    assert _text(["4", "2", "*", "7", "."]) == "4 2*7."


@pytest.mark.truth(
    "the policy's gradient in closed form, and all outcomes, weighed by their chance"
)
def test_the_gradient_of_a_policy_is_that_of_its_mean_reward():
    """Of two words the second is right; a place that another wrote has no part in the gradient."""
    logits = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    right = torch.softmax(logits, 0)[1]
    wanted = torch.autograd.grad(right, logits)[0]
    n = 3
    found = torch.zeros(2, dtype=torch.float64)
    for outcome in product((0, 1), repeat=n):
        drawn = torch.tensor(outcome)
        likely = logits.log_softmax(0)[drawn]
        padded = torch.stack([5 * logits[0].expand(n), likely], 1)
        own = torch.tensor([[False, True]] * n)
        loss = policy_loss(padded, own, drawn.double()[None])
        chance = likely.detach().sum().exp()
        found += chance * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(found, -wanted * (n - 1) / n)


@pytest.mark.truth("a binomial number of right answers: the mean of their standard deviation")
def test_gains_in_standard_deviations_weigh_a_policy_by_its_spread():
    """Of two words the second is right; all outcomes of five answers, by their chance."""
    n, logits = 5, torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    right = float(logits.detach().softmax(0)[1])
    wanted = 0.0
    for k in range(n + 1):
        variance = k / n * (1 - k / n)
        gained = variance / (math.sqrt(variance) + 1e-4)
        wanted += math.comb(n, k) * right**k * (1 - right) ** (n - k) * gained
    found = torch.zeros(2, dtype=torch.float64)
    for outcome in product((0, 1), repeat=n):
        drawn = torch.tensor(outcome)
        likely = logits.log_softmax(0)[drawn][:, None]
        loss = policy_loss(likely, torch.ones(n, 1).bool(), drawn.double()[None], standard=True)
        chance = likely.detach().sum().exp()
        found += chance * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(found, torch.tensor([wanted, -wanted], dtype=torch.float64))


def test_groups_of_equal_rewards_teach_nothing():
    likely = torch.randn(12, 2, generator=torch.Generator().manual_seed(3)).requires_grad_()
    reward = torch.tensor([[0.0] * 4, [1.0] * 4, [1.0, 0.0, 0.0, 0.0]])
    policy_loss(likely, torch.ones(12, 2).bool(), reward, standard=True).backward()
    grad = likely.grad
    assert grad is not None
    assert bool((grad[:8] == 0).all())
    assert bool((grad[8] < 0).all())
    assert bool((grad[9:] > 0).all())
