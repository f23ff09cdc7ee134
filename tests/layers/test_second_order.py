"""Products of states."""

import pytest
import torch
from scipy.stats import pearsonr
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import SecondOrder


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("one block-diagonal bilinear form")
def test_heads_are_a_block_diagonal_form():
    layer = SecondOrder("bilinear_heads", 6, 4, heads=2, n_outputs=3).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    x, y = draw(5, 6), draw(5, 4, seed=1)
    assert layer.form.numel() == 3 * 6 * 4 // 2
    for o in range(3):
        whole = torch.block_diag(*layer.form[o])
        wanted = torch.einsum("ri,ij,rj->r", x, whole, y) + layer.first.bias[o]
        wanted = wanted + x @ layer.first.weight[o] + y @ layer.second.weight[o]
        torch.testing.assert_close(layer(x, y)[:, o], wanted)
    with pytest.raises(InputError, match="widths that the heads divide, got 4 heads"):
        SecondOrder("bilinear_heads", 6, 4, heads=4)


@pytest.mark.truth("matrix products row by row")
def test_gram():
    x, y = draw(2, 7, 3), draw(2, 7, 4, seed=1)
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[4], [7]])
    found = SecondOrder("gram", 3, 4)(x, y, mask=mask)
    torch.testing.assert_close(found[0], x[0, :4].T @ y[0, :4] / 4)
    torch.testing.assert_close(found[1], x[1].T @ y[1] / 7)
    rooted = SecondOrder("gram", 3, 4, signed_root=True)(x, y)[1]
    wanted = found[1].sign() * found[1].abs().sqrt()
    torch.testing.assert_close(rooted, wanted / wanted.norm())


@pytest.mark.truth("closed form: averaged noise, and a cubed normal field")
def test_spatial_correlation():
    noise = draw(1, 1, 602, 602)
    field = nn.functional.avg_pool2d(noise, 3, stride=1)
    layer = SecondOrder("spatial", 1, lags=((0, 1), (1, 1), (0, 2)))
    found = layer(field)[0, 0].tolist()
    assert found == pytest.approx([6 / 9, 4 / 9, 3 / 9], abs=0.01)
    assert layer(4.0 * field - 7.0)[0, 0].tolist() == pytest.approx(found)
    cubed = layer(field**3)[0, 0].tolist()
    for rho, lower in zip((6 / 9, 4 / 9, 3 / 9), cubed, strict=True):
        assert lower == pytest.approx((9 * rho + 6 * rho**3) / 15, abs=0.015)
    with pytest.raises(InputError, match="at least two pairs"):
        layer(field[:, :, :1, :1])


@pytest.mark.truth("scipy.stats.pearsonr")
def test_pearson():
    a, b = draw(4, 9), draw(4, 9, seed=1)
    found = SecondOrder("pearson", 9)(a, b)
    for i in range(4):
        r = pearsonr(a[i].numpy(), b[i].numpy()).statistic
        assert float(found[i]) == pytest.approx((1 - r) / 2, abs=1e-12)
    torch.testing.assert_close(SecondOrder("pearson", 9)(3.0 * a + 2.0, b), found)
    assert SecondOrder("pearson", 9)(a, -2.0 * a).tolist() == pytest.approx([1.0] * 4)


def test_products_over_no_token_are_refused():
    x = torch.randn(2, 3, 4)
    with pytest.raises(InputError, match="a real token in every row, got none in row 0"):
        SecondOrder("gram", 4, 4)(x, x, mask=torch.tensor([[False] * 3, [True] * 3]))
