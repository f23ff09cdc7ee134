"""Independence of two codes: closed forms, and the measure of the same quantity."""

import itertools
import math

import pytest
import torch

from narrow import present
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
    with pytest.raises(InputError, match="expected x and y of the same width, got 3 and 5"):
        Separate("cosine")(x, y)


@pytest.mark.truth("closed form: the criterion of a bivariate normal with unit kernels")
def test_hsic_of_a_normal_pair_is_unbiased():
    draw = torch.Generator().manual_seed(0)
    values = []
    for _ in range(300):
        u = torch.randn(40, 2, generator=draw, dtype=torch.float64)
        x, y = u[:, :1], 0.5 * u[:, :1] + 0.75**0.5 * u[:, 1:]
        values.append(float(Separate("hsic", tau=1.0, scaled=False)(x, y)))
    found = torch.tensor(values)
    assert float(found.mean()) == pytest.approx(0.01076332, abs=3 * float(found.std()) / 300**0.5)
    assert float(found.std()) / 300**0.5 < 1e-3


@pytest.mark.truth("brute force over quadruples of rows")
@pytest.mark.parametrize("n", [4, 5])
def test_hsic_of_a_few_rows(n):
    x, y = (part[:n].double() for part in codes())
    k, m = (torch.exp(-torch.cdist(z, z).square() / (2 * 0.7)) for z in (x, y))
    total = []
    for a, b, c, d in itertools.permutations(range(n), 4):
        total.append(k[a, b] * (m[a, b] + m[c, d] - 2 * m[a, c]))
    expected = float(torch.stack(total).mean())
    assert float(Separate("hsic", tau=0.7, scaled=False)(x, y)) == pytest.approx(expected, rel=1e-9)
    small = Separate("hsic")(x, y)
    assert float(Separate("hsic")(0.1 * x, y)) == pytest.approx(float(small), rel=1e-9)


@pytest.mark.truth("autograd of the head alone: the gradient is turned round")
def test_an_adversary_learns_and_the_code_unlearns():
    x, y = codes()[0].requires_grad_(), codes()[1]
    torch.manual_seed(0)
    adversary = Separate("adversary", width=5, strength=0.4)
    adversary(x, y).backward()
    turned, own = present(x.grad).clone(), [present(p.grad) for p in adversary.parameters()]
    own, x.grad = [g.clone() for g in own], None
    adversary.zero_grad()
    (present(adversary.head)(x) - y).square().mean().backward()
    torch.testing.assert_close(turned, -0.4 * present(x.grad))
    for a, b in zip(own, adversary.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)
    with pytest.raises(InputError, match="expected width= for the adversary"):
        Separate("adversary")
    with pytest.raises(InputError, match="four rows or more for hsic, got 3"):
        Separate("hsic")(x[:3], y[:3])
