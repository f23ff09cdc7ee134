import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, ive
from tests.student import student

from narrow import present
from sonde.core.errors import InputError
from sonde.measure import Uniformity, uniformity
from sonde.measure.uniformity import even_spread


@pytest.mark.truth("scipy's Bessel functions")
@pytest.mark.parametrize("dim", [2, 3, 10, 100])
@pytest.mark.parametrize("t", [0.5, 2.0, 10.0])
def test_even_spread_is_the_closed_form(dim, t):
    order = dim / 2 - 1
    log_bessel = math.log(ive(order, 2 * t)) + 2 * t
    want = gammaln(dim / 2) - order * math.log(t) + log_bessel - 2 * t
    assert even_spread(dim, t) == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("torch.pdist, all pairs")
def test_is_the_mean_over_pairs_of_unlike_groups():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((60, 4)) + 1)
    unit = x / x.norm(dim=1, keepdim=True)
    want = torch.pdist(unit).square().mul(-2).exp().mean().log()
    assert uniformity(x).value == pytest.approx(float(want), rel=1e-12)
    group = torch.arange(60) // 3
    kernel = torch.exp(-2 * torch.cdist(unit, unit).square())[group[:, None] != group]
    assert uniformity(x, group=group).value == pytest.approx(float(kernel.mean().log()), rel=1e-9)


@pytest.mark.truth("the spread over fresh draws, and the closed form")
def test_standard_error_and_null():
    rng = np.random.default_rng(1)
    shift = np.array([1, 0, 0, 0, 0])
    found = [uniformity(rng.standard_normal((300, 5)) + shift) for _ in range(30)]
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.75 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < 1.3
    even = [float(uniformity(rng.standard_normal((300, 5)))) for _ in range(10)]
    assert np.mean(even) == pytest.approx(even_spread(5, 2.0), abs=0.01)
    assert np.mean([float(r) for r in found]) > np.mean(even) + 0.1


@pytest.mark.truth("the gradient of the value by weights of the groups")
def test_standard_error_of_groups_of_unlike_sizes():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(20), rng.integers(1, 40, 20))
    x = rng.standard_normal((20, 5))[group] + 0.5 * rng.standard_normal((len(group), 5))
    unit = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
    weight = torch.ones(20, dtype=torch.float64, requires_grad=True)
    each = weight[group]
    pairs = each[:, None] * each * torch.from_numpy(group[:, None] != group)
    kernel = torch.exp(-2 * torch.cdist(unit, unit).square())
    ((pairs * kernel).sum() / pairs.sum()).log().backward()
    sizes = np.bincount(group)
    rest = torch.from_numpy(1 - sizes / sizes.sum())
    kish = float(sizes.sum() ** 2 / np.square(sizes).sum())
    want = float((present(weight.grad) / rest.sqrt()).norm()) * student(kish)
    found = uniformity(x, group=group)
    assert float(present(found.se)) == pytest.approx(want, rel=1e-6)


def test_collapse_zeros_and_few_rows():
    assert uniformity(torch.ones(30, 3)).value == pytest.approx(0.0, abs=1e-12)
    x = torch.eye(4).repeat(5, 1)
    more = uniformity(torch.cat([x, torch.zeros(1, 4)]))
    assert "dead" in more.flags
    assert more.value == pytest.approx(uniformity(x).value, rel=1e-12)
    alone = uniformity(x, group=torch.zeros(20))
    assert "few_rows" in alone.flags
    assert math.isnan(alone.value)


def test_a_wrong_sharpness_is_named():
    with pytest.raises(InputError, match="Uniformity: expected t above 0, got 0"):
        Uniformity(t=0.0)
