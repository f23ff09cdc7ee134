"""Products whose factors a device would round."""

from typing import Any

import pytest
import torch

from sonde.stats import _product
from sonde.stats._product import split, transposed_product
from sonde.stats.moments import Moments

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Return a number to 11 significant bits, as TF32 has them."""
    fraction, exponent = torch.frexp(x.double())
    return torch.ldexp((fraction * 2**11).round() / 2**11, exponent).float()


class Rounding(torch.Tensor):
    """A matrix of which products are made as by TF32."""

    def __matmul__(self, other: Any):
        a, b = (rounded(t.as_subclass(torch.Tensor)).double() for t in (self, other))
        return torch.matmul(a, b).float().as_subclass(Rounding)


@pytest.fixture
def rows():
    return 3 * torch.randn(500, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.truth("frexp")
def test_the_parts_add_up_and_the_first_has_eleven_bits(rows):
    high, low = split(rows)
    assert torch.equal(high, rounded(high))
    assert torch.equal(high.double() + low.double(), rows.double())
    assert bool((low.abs() <= rows.abs() * 2**-11).all())


@pytest.mark.truth("the product in float64")
def test_factors_that_are_rounded_cost_no_digits(rows, monkeypatch):
    truth = rows.double().T @ rows.double()
    x = rows.as_subclass(Rounding)
    errors = []
    for is_rounding in (False, True):
        monkeypatch.setattr(_product, "rounds_factors", lambda device, found=is_rounding: found)
        found = transposed_product(x, x).as_subclass(torch.Tensor).double()
        errors.append(float((found - truth).abs().max() / truth.max()))
    assert errors[0] > 1e-6 > 3e-7 > errors[1]


@gpu
@pytest.mark.gpu
@pytest.mark.truth("the scatter in float64")
def test_a_scatter_keeps_its_digits_where_the_gpu_may_round(rows):
    old = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found = Moments().observe(rows.cuda()).scatter.cpu()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = old
    z = rows.double() - rows.double().mean(0)
    torch.testing.assert_close(found, z.T @ z, rtol=0, atol=5e-3)
