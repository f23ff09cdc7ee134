"""Independence of two codes: closed forms, and the measure of the same quantity."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.measure import cka
from sonde.train import Separate


def codes():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 3, generator=generator)
    return x, torch.randn(12, 5, generator=generator) - 0.7 * x[:, :1]


@pytest.mark.truth("closed form of two points: log of the mean of the kernel products")
def test_joint_entropy_of_two_points():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [7.0]])
    found = float(Separate("joint_entropy", tau=0.5)(x, y))
    assert found == pytest.approx(math.log((1 + math.exp(-5)) / 2), abs=1e-6)
    assert float(Separate("joint_entropy")(x, x * 0)) == pytest.approx(-0.379885, abs=1e-6)


@pytest.mark.truth("linear CKA of the same rows")
def test_cross_covariance_is_the_biased_cka():
    x, y = codes()
    expected = cka(x, y, debiased=False).value
    assert float(Separate()(x, y)) == pytest.approx(expected, rel=1e-5)
    assert float(Separate()(x, x @ torch.diag(torch.tensor([1.0, 1.0, 1.0])) * 4 + 2)) == (
        pytest.approx(1.0)
    )


def test_cosine_needs_one_width():
    x, y = codes()
    assert float(Separate("cosine")(x, -3 * x)) == pytest.approx(1.0)
    with pytest.raises(InputError, match="expected codes of one width, got 3 and 5"):
        Separate("cosine")(x, y)
