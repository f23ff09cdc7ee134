"""Distillation: its parts by hand, the gradient at high temperature, and who gets none."""

import pytest
import torch

from sonde.core import InputError
from sonde.train import Distil


def logits(seed=0, n=5):
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, 4, generator=draw, dtype=torch.float64)


@pytest.mark.truth("sums over classes by hand")
def test_the_value_is_that_of_sums():
    s, t, label = logits(), logits(1), torch.tensor([3, 0, 1, 1, 2])
    soft = hard = 0.0
    for row in range(5):
        p = torch.exp(t[row] / 2.5) / torch.exp(t[row] / 2.5).sum()
        q = torch.exp(s[row] / 2.5) / torch.exp(s[row] / 2.5).sum()
        soft += 2.5**2 * float((p * (p / q).log()).sum()) / 5
        hard -= float((torch.exp(s[row]) / torch.exp(s[row]).sum())[label[row]].log()) / 5
    found = Distil(2.5, 0.3)(s, t, label)
    assert found.item() == pytest.approx(0.3 * soft + 0.7 * hard)
    assert Distil(2.5, 1.0)(s, t).item() == pytest.approx(soft)


@pytest.mark.truth("the limit: matching centred logits")
def test_at_high_temperature_the_gradient_is_that_of_matched_logits():
    s, t = logits().requires_grad_(), logits(1).requires_grad_()
    Distil(1e6, 1.0)(s, t).backward()
    gap = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    torch.testing.assert_close(s.grad, gap.detach() / 4 / 5, rtol=1e-3, atol=1e-6)
    assert t.grad is None


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match=r"expected labels with weight 0\.5, got none"):
        Distil()(logits(), logits())
    with pytest.raises(InputError, match=r"weight in \[0, 1\], got 2"):
        Distil(4, 2)
