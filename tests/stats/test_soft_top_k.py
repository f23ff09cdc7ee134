"""Soft selection of the largest entries."""

import math

import pytest
import torch
from scipy.optimize import brentq

from sonde.core.errors import InputError
from sonde.stats import soft_top_k

X = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)


@pytest.mark.truth("the threshold by scipy.optimize.brentq, and values printed in the handbook")
def test_values():
    assert soft_top_k(X, 2).tolist() == pytest.approx(
        [0.817574, 0.622459, 0.377541, 0.182426], abs=1e-6
    )
    assert soft_top_k(X, 1).tolist() == pytest.approx(
        [0.526475, 0.290285, 0.130789, 0.052451], abs=1e-6
    )
    assert soft_top_k(torch.ones(4), 3).tolist() == pytest.approx([0.75] * 4)
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, found in zip(rows.tolist(), soft_top_k(rows, 3, alpha=4.0).tolist(), strict=True):
        t = brentq(
            lambda t, r=row: sum(1 / (1 + math.exp(-4 * (x + t))) for x in r) - 3, -9, 9, xtol=1e-14
        )
        assert found == pytest.approx([1 / (1 + math.exp(-4 * (x + t))) for x in row], abs=1e-10)


@pytest.mark.truth("finite differences")
def test_gradient():
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: soft_top_k(z, 2, 1.7), x.requires_grad_())
    hard = soft_top_k(x, 2, 1.7, hard=True)
    assert hard.detach().sum(-1).tolist() == [2.0, 2.0]
    weights = torch.arange(10.0).reshape(2, 5).double()
    (soft_grad,) = torch.autograd.grad((soft_top_k(x, 2, 1.7) * weights).sum(), x)
    (hard_grad,) = torch.autograd.grad((hard * weights).sum(), x)
    torch.testing.assert_close(soft_grad, hard_grad)


def test_edges():
    hidden = torch.tensor([1.0, -torch.inf, 3.0, 2.0], dtype=torch.float64)
    assert float(soft_top_k(hidden, 2)[1]) == 0.0
    assert soft_top_k(hidden[[0, 2, 3]], 2).tolist() == pytest.approx(
        soft_top_k(hidden, 2)[[0, 2, 3]].tolist()
    )
    assert soft_top_k(hidden, 3).tolist() == pytest.approx([1, 0, 1, 1])
    assert soft_top_k(X, 2, alpha=200.0).tolist() == pytest.approx([1, 1, 0, 0], abs=1e-12)
    with pytest.raises(InputError, match="k from 1 to the 3 finite entries"):
        soft_top_k(hidden, 4)
