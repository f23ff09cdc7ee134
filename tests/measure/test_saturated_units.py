import math

import pytest
import torch

from narrow import present
from sonde.core.errors import InputError
from sonde.measure import SaturatedUnits, saturated_units

Z = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.truth("autograd through the activation")
@pytest.mark.parametrize(("name", "top"), [("tanh", 1.0), ("sigmoid", 0.25)])
def test_slope_is_the_mean_derivative(name, top):
    z = (Z * torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0, 100.0])).requires_grad_()
    y = getattr(torch, name)(z)
    y.sum().backward()
    result = saturated_units(y.detach(), activation=name)
    slope = present(z.grad).mean(0) / top
    torch.testing.assert_close(result.slope, slope, atol=1e-9, rtol=1e-6)
    assert result.value == pytest.approx(float((slope < 0.05).double().mean()))


def test_values_outside_the_activation_are_nan_and_clipped():
    result = saturated_units(Z)
    assert math.isnan(result.value)
    assert result.flags == ("clipped",)


def test_wrong_threshold_is_named():
    with pytest.raises(InputError, match=r"SaturatedUnits: expected threshold in \(0, 1\)"):
        SaturatedUnits(threshold=1.0)
