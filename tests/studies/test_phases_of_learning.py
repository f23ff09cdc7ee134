"""Bits about a label by hand, and updates to a loss."""

import pytest
import torch

from sonde_studies._bit_rule import bit_rule
from sonde_studies._field_arms import compared_gradients
from sonde_studies._phases_of_learning import label_bits, updates_to


@pytest.mark.truth("a layer that holds the label has its entropy, one that holds nothing has none")
def test_bits_about_a_label_are_its_entropy_or_nothing():
    label = torch.arange(1_000) % 2
    told = torch.where(label[:, None] == 1, 0.9, -0.9).repeat(1, 3)
    assert label_bits(told, label, 0) == pytest.approx(1.0, abs=0.02)
    noise = torch.randn(1_000, 1, generator=torch.Generator().manual_seed(1))
    assert label_bits(noise, label, 0) == pytest.approx(0.0, abs=0.02)


def test_a_loss_that_is_never_reached_takes_all_updates():
    x, label = bit_rule(0)
    assert updates_to(0.0, x, label, (4, 3), 0, 30) == 30.0
    assert updates_to(10.0, x, label, (4, 3), 0, 30) == 10.0


@pytest.mark.truth("cosines and norms by hand")
def test_gradients_are_compared_row_by_row():
    one = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    two = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    share, cosine, larger = compared_gradients(one, two)
    assert (share, cosine) == (0.5, 0.0)
    assert larger == pytest.approx(0.693147, abs=1e-5)
