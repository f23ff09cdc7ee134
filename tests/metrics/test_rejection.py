"""The prediction rejection ratio: printed numbers, brute force over orders, bounds."""

import itertools
import math

import numpy as np
import pytest

from sonde.core.errors import InputError
from sonde.metrics import prediction_rejection

QUALITY = [0, 1, 1, 0, 1]


@pytest.mark.truth("numbers worked out by hand")
def test_printed_numbers():
    assert prediction_rejection([0.9, 0.1, 0.4, 0.6, 0.2], QUALITY).value == pytest.approx(1.0)
    found = prediction_rejection([0.9, 0.5, 0.4, 0.3, 0.2], QUALITY)
    assert found.value == pytest.approx(0.38271605, abs=1e-8)
    assert prediction_rejection([1, 1, 1, 1, 1], QUALITY).value == pytest.approx(0, abs=1e-12)


def by_definition(order, quality):
    kept = np.asarray(quality, dtype=float)[list(order)]
    area = np.mean(np.cumsum(kept) / np.arange(1, len(kept) + 1))
    best = np.sort(quality)[::-1]
    oracle = np.mean(np.cumsum(best) / np.arange(1, len(kept) + 1))
    return (area - kept.mean()) / (oracle - kept.mean())


@pytest.mark.truth("the mean of the definition over every order of equal uncertainties")
@pytest.mark.parametrize(
    "uncertainty", [[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 2, 3], [3, 2, 1, 1, 2, 3]]
)
def test_ties_are_averaged_over_their_orders(uncertainty):
    quality = [0.2, 0.9, 0.4, 0.0, 1.0, 0.7]
    orders = [
        p
        for p in itertools.permutations(range(6))
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(p))
    ]
    want = np.mean([by_definition(p, quality) for p in orders])
    assert prediction_rejection(uncertainty, quality).value == pytest.approx(want, abs=1e-12)


def test_worst_chance_and_undefined():
    rng = np.random.default_rng(0)
    quality = rng.random(500)
    assert prediction_rejection(quality, quality, resamples=50).value < -0.9
    chance = prediction_rejection(rng.random(500), quality)
    assert chance.low < 0 < chance.high
    flat = prediction_rejection([1, 2, 3], [1, 1, 1])
    assert math.isnan(flat.value)
    assert flat.flags == ("dead",)
    with pytest.raises(InputError, match="finite quality for each of 2"):
        prediction_rejection([1, 2], [1, math.inf])
