"""Entropy with a gradient: a histogram of numpy, and finite differences."""

import numpy as np
import pytest
import torch

from sonde.core import InputError
from sonde.train import StateEntropy


@pytest.mark.truth("numpy's histogram of values on the centres of bins")
def test_on_the_centres_of_bins_it_is_the_entropy_of_a_histogram():
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(9, (40, 3, 2), generator=draw).double().square().sqrt() - 4
    count = np.histogram(x.numpy(), bins=9, range=(-4.5, 4.5))[0]
    p = count[count > 0] / count.sum()
    assert float(StateEntropy(9)(x)) == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-5)
    assert float(StateEntropy(9)(torch.ones(4, 3))) == 0.0
    wide = StateEntropy(5, ends=(-2.0, 2.0))  # what lies beyond an end counts for its bin
    assert float(wide(x)) == pytest.approx(float(wide(x.clamp(-2, 2))), abs=1e-6)
    assert float(wide(x[:, :1] / 9)) < 2.0  # the bins do not follow the values
    with pytest.raises(InputError, match="bins"):
        StateEntropy(1)
    with pytest.raises(InputError, match="rising"):
        StateEntropy(4, ends=(1.0, 1.0))


@pytest.mark.truth("finite differences at inner values; the least entropy has two bins")
def test_the_gradient_is_that_of_finite_differences_and_lowers_the_entropy():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=draw, dtype=torch.float64).requires_grad_()
    loss = StateEntropy(16)
    (slope,) = torch.autograd.grad(loss(x), x)
    inner = int((x - x.mean()).abs().argmin())
    moved = x.detach().clone()
    moved.view(-1)[inner] += 1e-3
    difference = (float(loss(moved)) - float(loss(x.detach()))) / 1e-3
    assert difference == pytest.approx(float(slope.flatten()[inner]), rel=0.05)
    before, y = float(loss(x.detach())), x.detach().clone().requires_grad_()
    for _ in range(200):
        (slope,) = torch.autograd.grad(loss(y), y)
        y = (y - 2.0 * slope).detach().requires_grad_()
    assert float(loss(y.detach())) < 0.8 * before


def test_no_values_are_refused_and_a_missing_one_is_not_hidden():
    with pytest.raises(InputError, match="expected values, got none"):
        StateEntropy(8)(torch.zeros(0, 3))
    assert StateEntropy(8)(torch.tensor([[1.0, torch.nan], [2.0, 3.0]])).isnan()
