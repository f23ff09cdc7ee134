"""Alignment with a teacher: closed forms."""

import pytest
import torch

from sonde.core import InputError
from sonde.train import Align


@pytest.mark.truth("closed forms: cosines of known vectors")
def test_distances_of_known_vectors():
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 3.0]])
    assert float(Align()(x, y)) == pytest.approx(-(0.5**0.5))
    assert float(Align()(y, y)) == pytest.approx(-1.0)
    z, same = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert float(Align("relational")(z, same)) == pytest.approx(0.5)
    # a layer norm takes (1, 3) to (-1, 1); distances 1.5 and 3: 1.5^2 / 4 and 3 - 1
    x, y = torch.tensor([[0.5, 4.0]]), torch.tensor([[1.0, 3.0]])
    assert float(Align("smooth_l1")(x, y)) == pytest.approx((1.5**2 / 4 + 2.0) / 2, rel=1e-4)
    assert float(Align("mse")(x, y)) == pytest.approx((1.5**2 + 3.0**2) / 2, rel=1e-4)


def test_relations_do_not_change_with_rotation_scale_or_width():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=generator), torch.randn(9, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    plain, turned = (Align("relational")(rows, y) for rows in (x, -2.5 * x @ turn))
    torch.testing.assert_close(plain, turned)


def test_the_target_has_no_gradient_and_other_widths_are_refused():
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    Align("cosine", "mlp", width=6, hidden=5)(x, y).backward()
    assert x.grad is not None
    assert y.grad is None
    with pytest.raises(InputError, match="Pass projector='linear', width=6"):
        Align()(x, y)
