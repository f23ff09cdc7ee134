"""Concept directions in linear networks, whose sensitivity is a product of weights."""

import pytest
import torch

from sonde.core import InputError
from sonde.explain import Tcav

DIM = 40
WEIGHT = torch.zeros(DIM, dtype=torch.float64)
WEIGHT[0], WEIGHT[2] = 2.0, -1.0


def planted(seed=0, along=0, shift=3.0, n=30):
    """Rows asked about, rows of one concept, random rows; the answer is linear."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.zeros(n), torch.ones(n), torch.full((3 * n,), -1.0)]).long()
    x = torch.randn(len(label), DIM, generator=draw, dtype=torch.float64)
    x[label == 1, along] += shift
    return x, label, WEIGHT.repeat(len(label), 1)


@pytest.mark.slow
@pytest.mark.truth("linear network: the sensitivity of every row is w . v")
def test_sensitivity_of_a_linear_network_is_a_product():
    for separator in ("signal", "logistic"):
        for sign in (1.0, -1.0):
            x, label, grad = planted(shift=4.0 * sign)
            found = Tcav(separator, n_random=100).fit(x, label, grad=grad)
            assert found.value == (1.0 if sign > 0 else 0.0)
            assert float(found.sensitivity) == pytest.approx(2 * sign, abs=0.5)
            assert found.significant.all()
            assert float(found.direction_of[0, 0]) * sign > 0.8


@pytest.mark.truth("scikit-learn's logistic regression")
@pytest.mark.parametrize("dim", [4, 80])
def test_the_separator_is_that_of_scikit_learn(dim):
    from sklearn.linear_model import LogisticRegression

    from sonde.explain.tcav import _logistic

    draw = torch.Generator().manual_seed(1)
    own = torch.randn(1, 30, dim, generator=draw, dtype=torch.float64) + 0.7
    other = torch.randn(1, 30, dim, generator=draw, dtype=torch.float64)
    x = torch.cat([own, other], 1)[0]
    z = x - x.mean(0)
    z = torch.cat([z / z.square().mean().sqrt(), torch.ones(60, 1)], 1)
    truth = (torch.arange(60) < 30).numpy()
    want = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(z.numpy(), truth)
    found = _logistic(own, other, 1.0)[0]
    assert torch.allclose(found, torch.from_numpy(want.coef_[0, :dim]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.truth("chance: at level .05 a concept without effect is found in about 5 of 100 draws")
def test_a_concept_without_effect_is_rarely_significant():
    p, score = [], []
    for seed in range(100):
        x, label, grad = planted(seed, along=1, n=20)
        found = Tcav("signal", n_random=100).fit(x, label, grad=grad)
        p.append(float(found.p))
        score.append(float(found.value))
    assert sum(v < 0.05 for v in p) <= 10
    # A test over random sets that share the concept's rows would call most of these scores sure.
    assert sum(v < 0.1 or v > 0.9 for v in score) > 20


@pytest.mark.essential
@pytest.mark.truth("the same rows beside other random sets: the p of a thousand random concepts")
def test_the_fewest_random_concepts_give_a_p_that_other_ones_give_too():
    x, label, _ = planted(3, along=1, shift=0.5)
    grad = torch.eye(DIM, dtype=torch.float64)[1].repeat(len(label), 1)
    p = sorted(float(Tcav("signal", seed=s).fit(x, label, grad=grad).p) for s in range(12))
    sure = float(Tcav("signal", n_random=1000, seed=99).fit(x, label, grad=grad).p)
    assert 1e-4 < sure < 0.2
    assert sure / 5 < p[0] < p[-1] < sure * 5, (sure, p)


def test_sets_that_say_nothing_are_refused():
    x, label, grad = planted()
    few = label.clone()
    few[torch.nonzero(few == 1).flatten()[9:]] = 0
    with pytest.raises(InputError, match=r"10 rows of each concept.*got 9"):
        Tcav().fit(x, label=few, grad=grad)
    with pytest.raises(InputError, match="got 0 concepts"):
        Tcav().fit(x, label=label.clamp(max=0), grad=grad)
    with pytest.raises(InputError, match="100 random concepts or more"):
        Tcav(n_random=99)


def test_rows_that_are_all_equal_have_no_score():
    label = torch.arange(90) % 3 - 1
    found = Tcav().fit(torch.ones(90, 4), grad=torch.ones(90, 4), label=label)
    assert bool(torch.as_tensor(found.value).isnan().all())
    assert "dead" in found.flags
