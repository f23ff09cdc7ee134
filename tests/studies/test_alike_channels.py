"""Channels that are copies, and channels that have nothing in common."""

import pytest
import torch

from sonde_studies.alike_channels import channels_of, filled, likeness
from sonde_studies.locality import FAINT, rows_of, trained_net

DRAW = torch.randn(400, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def test_copies_are_alike_and_fill_one_direction():
    copies = DRAW[:, :1] * torch.tensor([1.0, -2.0, 0.5, 3.0])[:, None, None]
    assert likeness(copies) == pytest.approx(1)
    assert filled(copies) == pytest.approx(1 / 4)


def test_independent_channels_of_any_size_are_not_alike_and_fill_all_directions():
    sizes = torch.tensor([1.0, 20.0, 0.1, 3.0])[:, None, None]
    assert likeness(DRAW * sizes) < 0.03
    assert filled(DRAW * sizes) == pytest.approx(1, abs=0.01)


def test_two_pairs_of_copies_have_a_third_of_the_likeness():
    pairs = DRAW[:, [0, 0, 1, 1]]
    assert likeness(pairs) == pytest.approx(1 / 3, abs=0.03)
    assert filled(pairs) == pytest.approx(1 / 2, abs=0.01)


def test_a_constant_channel_counts_as_a_copy():
    assert likeness(DRAW * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None, None]) > 0.4


def test_channels_are_read_behind_the_layer_and_in_it():
    net, _ = trained_net("waves", 50, 0, 3, FAINT)
    x = rows_of(20, 1, FAINT)[0]
    alike, rank = channels_of(net, x)
    assert alike == likeness(net[:3](x).detach())
    assert 1 / 12 <= rank <= 1
