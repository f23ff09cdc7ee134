"""An affine map of states against scikit-learn's ridge."""

import pytest
import torch

from sonde.core import InputError
from sonde.explain import AffineLens


@pytest.mark.truth("ridge regression by scikit-learn")
def test_the_map_is_that_of_ridge_regression():
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64) + 1.0
    y = x @ torch.randn(5, 4, generator=generator, dtype=torch.float64)
    y = y + torch.randn(300, 4, generator=generator, dtype=torch.float64)
    found = AffineLens(ridge=0.2).fit(x, y=y)
    size = 0.2 * float((x - x.mean(0)).square().mean()) * 300
    want = Ridge(alpha=size).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(found.weight, torch.from_numpy(want.coef_))
    torch.testing.assert_close(found.bias, torch.from_numpy(want.intercept_))
    rest = y - x @ found.weight.T - found.bias
    share = 1 - rest.square().sum() / (y - y.mean(0)).square().sum()
    assert found.value == pytest.approx(float(share))
    with pytest.raises(
        InputError, match="expected two sites of the same width, got widths 5 and 4"
    ):
        _ = found.map


def test_no_more_rows_than_units_is_said():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert AffineLens().fit(x[:4], y=x[:4].flip(0)).flags == ("few_rows",)
    assert AffineLens().fit(x, y=x.flip(0)).flags == ()


def test_the_map_carries_rows():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    found = AffineLens(ridge=1e-9).fit(x, y=x.flip(1) * 2 + 1)
    torch.testing.assert_close(found.map(x), x.flip(1) * 2 + 1, rtol=1e-4, atol=1e-4)
