"""Specialists of halves of the digits, and the mean of their logits."""

import pytest
import torch

from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._specialists import specialists


@pytest.mark.truth("digits that a specialist never learned cannot exceed its own half")
def test_a_specialist_is_right_on_its_own_half_and_the_mean_on_more():
    x, label = shuffled_digits(2)
    found = specialists(60, 2, x, label, 1_000, 1e-3)
    low = float((label[1_000:] < 5).double().mean())
    assert 0.15 < found["low"] < low + 0.05
    assert 0.15 < found["high"] < 1 - low + 0.05
    assert found["mean"] > max(found["low"], found["high"])
    assert torch.isfinite(torch.tensor(list(found.values()))).all()
