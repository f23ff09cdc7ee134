import math

import numpy as np
import pytest
import torch

from sonde.core.errors import ShapeError
from sonde.measure import update_similarity


def _pair(seed=0, n=300):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 9))
    return x, x + rng.standard_normal((n, 9))


@pytest.mark.truth("sklearn.metrics.pairwise.paired_cosine_distances")
def test_definition():
    from sklearn.metrics.pairwise import paired_cosine_distances

    x, y = _pair()
    cosine = 1.0 - paired_cosine_distances(x, y)
    result = update_similarity(x, y)
    assert result.value == pytest.approx(cosine.mean(), rel=1e-9)
    assert result.spread == pytest.approx(cosine.std(), rel=1e-9)
    assert result.se == pytest.approx(cosine.std(ddof=1) / 300**0.5, rel=1e-9)


def test_rows_of_zeros_are_counted_not_used():
    x, y = _pair(1)
    want = update_similarity(x[1:], y[1:]).value
    x[0] = 0.0
    result = update_similarity(x, y)
    assert result.value == pytest.approx(want)
    assert (result.n, result.n_zero) == (299, 1)


def test_all_zero_is_nan_and_dead():
    result = update_similarity(torch.zeros(3, 2), torch.ones(3, 2))
    assert math.isnan(result.value)
    assert result.flags == ("dead",)


def test_unequal_widths_are_named():
    with pytest.raises(
        ShapeError, match="UpdateSimilarity: expected two sites of the same width, got 9 and 4"
    ):
        update_similarity(_pair()[0], _pair()[1][:, :4])
