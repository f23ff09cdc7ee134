"""Tones and paths against their equations: neighbours of a sine, and straight lines."""

import pytest
import torch

from sonde_studies._remembered_sequences import LENGTH, paths, tones


@pytest.mark.truth("the recurrence of a sine: the mean of both neighbours over the middle")
def test_targets_are_slow_tones_within_the_mixture():
    both, slow = tones(3)
    fast = both - slow
    for tone, low, high in ((slow, 0.36, 0.44), (fast, 1.89, 2.31)):
        ends, middle = tone[:, 2:] + tone[:, :-2], tone[:, 1:-1]
        rate = ((ends * middle).sum(1) / (2 * middle.square().sum(1))).acos()
        torch.testing.assert_close(ends, 2 * rate.cos()[:, None] * middle, rtol=0, atol=1e-4)
        assert low - 1e-3 < float(rate.min())
        assert float(rate.max()) < high + 1e-3


def test_points_keep_their_sum_on_a_line_and_stand_in_order():
    """The sum of two points that move evenly moves evenly, in whatever order they stand."""
    x, move = paths(4)
    assert bool((x[..., 0] <= x[..., 1]).all())
    torch.testing.assert_close(x[:, 1:] - x[:, :-1], 2 * move[:, :-1] / LENGTH, rtol=0, atol=1e-5)
    total = move.sum(2)
    torch.testing.assert_close(total, total[:, :1].expand_as(total), rtol=0, atol=1e-4)
