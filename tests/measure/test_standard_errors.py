"""The standard error of each figure against the spread over fresh data."""

import numpy as np
import pytest

from sonde import measure

GROUPS, SIZE = 200, 3


def _rows(seed, dim=12):
    """Rows in groups that share an effect, with a decaying spectrum and a mean."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(2.0, 0.3, dim)
    shared = rng.standard_normal((GROUPS, 1, dim)) * scale
    own = rng.standard_normal((GROUPS, SIZE, dim)) * scale
    return (0.7 * shared + 0.7 * own + 0.8).reshape(-1, dim)


def _labels():
    return np.tile(np.arange(4), GROUPS * SIZE // 4)


FIGURES = {
    "covariance": lambda x, g: measure.covariance(x, group=g),
    "participation_ratio": lambda x, g: measure.participation_ratio(x, group=g),
    "participation_ratio sample": lambda x, g: measure.participation_ratio(
        x, group=g, source="sample"
    ),
    "stable_rank": lambda x, g: measure.stable_rank(x, group=g),
    "effective_rank": lambda x, g: measure.effective_rank(x, group=g),
    "entropy_rank": lambda x, g: measure.entropy_rank(x, group=g),
    "anisotropy": lambda x, g: measure.anisotropy(x, group=g),
    "regression": lambda x, g: measure.regression(x[:, :5], x[:, 4:] + x[:, :1], group=g),
    "class_separability": lambda x, g: measure.class_separability(
        x + _labels()[:, None] * 0.4, _labels(), group=g
    ),
}


@pytest.mark.truth("spread of the value over fresh draws of the data")
@pytest.mark.parametrize("name", FIGURES)
def test_standard_error_matches_the_spread(name):
    group = np.repeat(np.arange(GROUPS), SIZE)
    results = [FIGURES[name](_rows(seed), group) for seed in range(14)]
    spread = np.std([r.value for r in results], ddof=1)
    assert np.mean([r.se for r in results]) / spread == pytest.approx(1.0, abs=0.4)
