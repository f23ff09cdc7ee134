"""Nulls against the mean value over fresh draws of rows in which there is nothing to see."""

import numpy as np
import pytest
import torch

from sonde import measure
from sonde.measure._coding import expected_rate

DRAWS = 60


def white(seed, n=150, dim=5):
    return np.random.default_rng(seed).standard_normal((n, dim))


def labels(seed, n=150):
    return np.random.default_rng(seed + 500).choice(3, size=n, p=[0.5, 0.3, 0.2])


FIGURES = {
    "stable_rank": lambda s: measure.stable_rank(white(s)),
    "entropy_rank": lambda s: measure.entropy_rank(white(s)),
    "effective_rank": lambda s: measure.effective_rank(white(s)),
    "wide stable_rank": lambda s: measure.stable_rank(white(s, 200, 40)),
    "wide entropy_rank": lambda s: measure.entropy_rank(white(s, 30, 60)),
    "matrix_entropy": lambda s: measure.matrix_entropy(white(s), centered=False),
    "coding_rate": lambda s: measure.coding_rate(white(s)),
    "wide coding_rate": lambda s: measure.coding_rate(white(s, 80, 40)),
    "rate_reduction": lambda s: measure.rate_reduction(white(s), labels(s)),
    "massive_activations": lambda s: measure.massive_activations(white(s)),
    "unit_entropy": lambda s: measure.unit_entropy(white(s), n_bins=12),
    "unit_clusters": lambda s: measure.unit_clusters(white(s, 60, 7), k=3),
    "gradient_conflict of labels that say nothing": lambda s: measure.gradient_conflict(
        white(s) + 0.3, labels(s)
    ),
    "gradient_conflict of noise": lambda s: measure.gradient_conflict(white(s), labels(s)),
}


@pytest.mark.slow
@pytest.mark.truth("the mean over fresh white rows and classes by lot")
@pytest.mark.parametrize("name", FIGURES)
def test_the_null_is_the_mean_of_nothing(name):
    found = [FIGURES[name](seed) for seed in range(DRAWS)]
    value, null = (np.array([float(torch.as_tensor(getattr(r, w))) for r in found])
                   for w in ("value", "null"))  # fmt: skip
    gap = (value - null).mean() / value.std(ddof=1)
    assert abs(gap) < 0.2 + 2.2 / np.sqrt(DRAWS)


@pytest.mark.truth("labels that say nothing: means of one direction, with noise of known size")
def test_groups_of_one_direction_reach_the_null_alone():
    """Two halves of a group agree less: they read .83 where whole groups agree at .93."""
    shift = np.array([1.0, -0.5, 0.3, 0.0, 0.2])
    found = [measure.gradient_conflict(white(s, 90) + shift, labels(s, 90)) for s in range(15)]
    value, null = (np.mean([float(getattr(r, w)) for r in found]) for w in ("value", "null"))
    halves = np.mean([float(r.itself.mean()) for r in found])
    assert abs(value - null) < 0.03
    assert value - halves > 0.02


@pytest.mark.truth("the mean over draws of unit rows with an uneven second moment")
def test_the_expected_rate_holds_for_few_dimensions():
    scale, n = torch.tensor([2.0, 1.0, 0.7, 0.4]), 40
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4000, n, 4, generator=random, dtype=torch.float64) * scale + 0.5
    x = x / x.norm(dim=2, keepdim=True)
    rates = torch.logdet(torch.eye(4) + 8 * x.mT @ x / n) / 2
    every = x.flatten(0, 1)
    gap = float(rates.mean()) - expected_rate(every.T @ every / len(every), every.mean(0), n, 8.0)
    assert abs(gap) < 0.15 * float(rates.std())


def heavy(seed, n=60, dim=8):
    return np.random.default_rng(seed).standard_t(3, size=(n, dim))


@pytest.mark.truth(
    "independent units of Student's law with three degrees of freedom, drawn 60 times"
)
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("participation_ratio", 0.55),
        ("effective_rank", 0.5),
        ("stable_rank", 0.7),
        ("entropy_rank", 0.55),
    ],
)
def test_the_null_of_heavy_tails_is_that_of_rows_with_these_tails(name, most):
    results = [getattr(measure, name)(heavy(seed)) for seed in range(DRAWS)]
    values, nulls = (np.array([float(x) for x in y]) for y in
                     ([r.value for r in results], [r.null for r in results]))  # fmt: skip
    assert abs(nulls.mean() - values.mean()) < most * values.std()
