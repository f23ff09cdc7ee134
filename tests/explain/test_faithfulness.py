"""Judging an attribution by taking places away: linear models by hand, orders by brute force."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import sem
from tests.student import student
from torch import nn

from sonde.core import InputError, ShapeError
from sonde.explain import (
    Baseline,
    Comprehensiveness,
    Deletion,
    FaithfulnessViolation,
    GradTimesInput,
    Insertion,
    Objective,
    Saliency,
    Sufficiency,
)

ZERO, LOGIT = Baseline("zero"), Objective(target=0)


def linear(*weights):
    net = nn.Linear(len(weights), 2, bias=False).double()
    net.weight.data = torch.tensor([weights, [0.0] * len(weights)], dtype=torch.float64)
    return net


def rows(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("a linear model: what is left is a sum, by hand")
def test_curves_of_a_linear_model():
    net, x = linear(4.0, 3.0, -2.0, 1.0), torch.ones(1, 4, dtype=torch.float64)
    found = GradTimesInput().explain(net, x, objective=LOGIT)
    deleted = Deletion(ZERO, steps=4).judge(net, x, found, objective=LOGIT)
    assert deleted.curve.tolist() == [6.0, 2.0, -1.0, -2.0, 0.0]
    assert deleted.value == pytest.approx(np.trapezoid([6, 2, -1, -2, 0], dx=0.25))
    inserted = Insertion(ZERO, steps=4).judge(net, x, found, objective=LOGIT)
    assert inserted.curve.tolist() == [0.0, 4.0, 7.0, 8.0, 6.0]
    needed = Comprehensiveness(ZERO, parts=(0.25, 0.5)).judge(net, x, found, objective=LOGIT)
    assert needed.value == pytest.approx((4 + 7) / 2)
    enough = Sufficiency(ZERO, parts=(0.25, 0.5)).judge(net, x, found, objective=LOGIT)
    assert enough.value == pytest.approx((2 - 1) / 2)
    assert (deleted.direction, inserted.direction) == ("lower", "higher")
    assert deleted.se is None  # one example has no error
    for n in (2, 5):
        x = rows(n, 4, seed=n)
        found = GradTimesInput().explain(net, x, objective=LOGIT)
        several = Deletion(ZERO, steps=4).judge(net, x, found, objective=LOGIT)
        assert several.se == pytest.approx(sem(several.each.numpy()) * student(n))


@pytest.mark.slow
@pytest.mark.truth("all 720 orders of six places, brute force")
def test_the_true_order_is_the_best_of_all():
    net, x = linear(*rows(1, 6, seed=3)[0].tolist()), rows(1, 6, seed=4)
    found = GradTimesInput().explain(net, x, objective=LOGIT)
    judged = Deletion(ZERO, steps=6).judge(net, x, found, objective=LOGIT)
    areas = []
    for order in permutations(range(6)):
        scores = torch.zeros(1, 6, dtype=torch.float64)
        scores[0, list(order)] = torch.arange(6, 0, -1, dtype=torch.float64)
        other = replace(found, value=scores)
        areas.append(
            float(Deletion(ZERO, steps=6, n_random=0).judge(net, x, other, objective=LOGIT))
        )
    assert judged.value == pytest.approx(min(areas))
    assert judged.null == pytest.approx(sum(areas) / len(areas), abs=3 * judged.null_spread)


def test_equal_attributions_are_as_good_as_a_random_order():
    net, x = linear(*[1.0] * 4, *[0.0] * 12), torch.ones(50, 16, dtype=torch.float64)
    found = GradTimesInput().explain(net, x, objective=LOGIT)
    flat = replace(found, value=torch.ones_like(torch.as_tensor(found.value)))
    tests = [Deletion(ZERO, seed=seed, n_random=2) for seed in range(8)]
    judged = [test.judge(net, x, flat, objective=LOGIT) for test in tests]
    for one in judged:
        first, second = one.null_each.mean(1).tolist()
        assert one.null_spread == pytest.approx(abs(first - second) / 2**0.5)
    ones = [float(one) for one in judged]
    best = Deletion(ZERO).judge(net, x, found, objective=LOGIT)
    assert best.null is not None
    assert np.mean(ones) == pytest.approx(float(best.null), abs=0.5)
    assert float(best) < min(ones)


def test_places_of_images_and_maps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(3, 2, 4, 4)
    found = Saliency().explain(net, x)
    judged = Deletion(steps=4, n_random=1).judge(net, x, found)
    assert judged.curve.shape == (5,)
    with pytest.raises(ShapeError, match=r"\(3, 16\) positions, got \(3, 9\)"):
        Deletion().judge(net, x, replace(found, value=torch.ones(3, 2, 3, 3)))
    with pytest.raises(InputError, match="steps of at least 1, got 0"):
        Deletion(steps=0)


@pytest.mark.truth("a linear model without biases: the sign is right, or wrong when it is turned")
def test_the_sign_of_a_linear_model():
    net, x = linear(*rows(1, 8, seed=1)[0].tolist()), rows(200, 8, seed=2)
    test = FaithfulnessViolation(k=3, baseline=ZERO)
    found = GradTimesInput().explain(net, x, objective=LOGIT)
    assert test.judge(net, x, found, objective=LOGIT).value == 0.0
    value = torch.as_tensor(found.value)
    turned = test.judge(net, x, replace(found, value=-value), objective=LOGIT)
    assert turned.value == 1.0
    assert turned.low > 0.99
    positive = test.judge(net, x, replace(found, value=value.abs()), objective=LOGIT)
    top = value.gather(1, value.abs().topk(3, dim=1).indices)
    assert positive.value == pytest.approx(float((top < 0).double().mean()))
    assert positive.value == positive.base_rate
    assert positive.trials.tolist() == [200, 200, 200]


def test_what_moves_nothing_is_a_tie():
    net, x = linear(0.0, 0.0, 1.0), torch.ones(4, 3, dtype=torch.float64)
    found = GradTimesInput().explain(net, x, objective=LOGIT)
    blind = replace(found, value=torch.tensor([[2.0, 1.0, 0.0]]).expand(4, 3).double())
    judged = FaithfulnessViolation(k=2, baseline=ZERO).judge(net, x, blind, objective=LOGIT)
    assert (judged.value, judged.ties.tolist()) == (0.0, [4, 4])
    assert np.isnan(judged.without_ties)
