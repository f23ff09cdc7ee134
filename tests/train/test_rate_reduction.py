"""Rate reduction as a loss: its definition, and the measure of the same name."""

import numpy as np
import pytest
import torch

from sonde.core import InputError
from sonde.measure import rate_reduction
from sonde.train import RateReduction


def rows():
    generator = torch.Generator().manual_seed(4)
    label = torch.tensor([0] * 9 + [1] * 5 + [2] * 7 + [-1] * 2)
    return torch.randn(23, 6, generator=generator) + label[:, None], label


@pytest.mark.truth("log-determinants by numpy")
def test_value_is_the_difference_of_log_determinants():
    x, label = rows()
    unit = x[label >= 0].double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    of = label[label >= 0].numpy()

    def rate(part):
        return np.linalg.slogdet(np.eye(6) + 6 / 0.3 * part.T @ part / len(part))[1] / 2

    each = [(of == k).mean() * rate(unit[of == k]) for k in range(3)]
    assert float(RateReduction(0.3)(x, label)) == pytest.approx(sum(each) - rate(unit), rel=1e-5)


def test_the_measure_reports_the_same_number():
    x, label = rows()
    for eps2 in (0.5, 0.05):
        loss = float(RateReduction(eps2)(x, label))
        assert -loss == pytest.approx(rate_reduction(x, label, eps2=eps2).value, rel=3e-6)


@pytest.mark.truth("one batch of all rows that the average holds, each with its weight")
def test_an_average_over_batches_is_a_larger_batch():
    x, label = rows()
    loss = RateReduction(0.3, average=0.5).double()
    first, second = slice(0, 23, 2), slice(1, 23, 2)
    for part in (first, second):  # two parts of one step
        loss(x[part].double(), label[part])
    loss.step()
    y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.requires_grad_()
    value = loss(y, torch.full((4,), 4))  # a class that was not there
    every = torch.cat([x[:21].double(), y, y])  # the rows before count half
    whole = RateReduction(0.3)(every, torch.cat([label[:21], torch.full((8,), 4)]))
    assert float(value.detach()) == pytest.approx(float(whole.detach()), rel=1e-9)
    (found,), (expected,) = (torch.autograd.grad(one, y) for one in (value, whole))
    n_held = 21 * 0.5 + 4
    torch.testing.assert_close(found, expected * n_held / 4)
    again = RateReduction(0.3, average=0.5).double()
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(y, torch.full((4,), 4)), value)
    loss.eval()
    assert float(loss(x.double(), label)) == pytest.approx(
        float(RateReduction(0.3)(x.double(), label)), rel=1e-9
    )


def test_one_class_is_refused():
    with pytest.raises(InputError, match="expected rows of two classes or more, got 1"):
        RateReduction()(torch.randn(4, 2), torch.tensor([3, 3, -1, 3]))
