"""Learning of diluted patterns from noisy examples, with a teacher and without one."""

import math

import pytest
import torch

from sonde_studies._noisy_patterns import (
    BLANKS,
    PATTERNS,
    QUALITY,
    UNITS,
    example_rows,
    learned_couplings,
    learning_curves,
    threshold,
)


@pytest.mark.truth("the share of kept signs that was drawn, and sums by hand")
def test_examples_and_couplings():
    draw = torch.Generator().manual_seed(0)
    stored = torch.tensor([[1.0, -1.0, 0.0, 1.0], [-1.0, 1.0, 1.0, 0.0]])
    rows = example_rows(stored, 4_000, draw)
    assert float((rows[0, :, 0] > 0).double().mean()) == pytest.approx((1 + QUALITY) / 2, abs=0.03)
    assert bool((rows[0, :, 2] == 0).all())
    few = rows[:, :2]
    told, untold = (learned_couplings(few, way) for way in ("told", "not told"))
    means = few.mean(1)
    assert float(told[0, 1]) == pytest.approx(float((means[:, 0] * means[:, 1]).sum()) / 4)
    assert float(untold[0, 1]) == pytest.approx(float((few[..., 0] * few[..., 1]).sum()) / 8)


@pytest.mark.truth("theory of the hierarchical regime: (1 - d) d^k")
def test_with_many_examples_overlaps_are_those_of_stored_patterns():
    for found in learning_curves(0, (2_000,)).values():
        first, second, _ = found[2_000].abs().sort(descending=True).values.tolist()
        assert first == pytest.approx(1 - BLANKS, abs=0.05)
        assert second == pytest.approx((1 - BLANKS) * BLANKS, abs=0.08)
    assert PATTERNS < UNITS


@pytest.mark.truth("a straight line between doublings")
def test_a_threshold_lies_between_two_numbers_of_examples():
    assert threshold({1: 0.2, 2: 0.4, 4: 0.8}, 0.6) == pytest.approx(1.5)
    assert threshold({1: 0.2, 2: 0.4}, 0.6) == pytest.approx(math.log2(2) + 1)
    assert threshold({1: 0.9}, 0.6) == 0.0
