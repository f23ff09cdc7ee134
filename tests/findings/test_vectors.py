"""What is said of vectors without labels: against numpy, and on planted clusters."""

import numpy as np
import pytest
import torch

from sonde.findings.vectors import clusters, dimensions, mean_cosine


@pytest.mark.truth("numpy: all pairs one by one, eigenvalues of the covariance")
def test_cosine_and_dimensions_are_those_of_all_pairs():
    draw = np.random.default_rng(3)
    x = draw.normal(size=(41, 7)) * [3, 2, 1, 1, 0.5, 0.2, 0.1] + [1, 0, -2, 0, 0, 0.3, 0]
    pairs = [
        x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
        for i in range(41)
        for j in range(41)
        if i != j
    ]
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert mean_cosine(torch.from_numpy(x)) == pytest.approx(np.mean(pairs), rel=1e-9)
    expected = values.sum() ** 2 / (values**2).sum()
    assert dimensions(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-9)


def test_planted_clusters_are_counted_and_an_even_cloud_has_none():
    draw = torch.Generator().manual_seed(4)
    noise = torch.randn(240, 20, generator=draw, dtype=torch.float64)
    centres = 12 * torch.randn(3, 20, generator=draw, dtype=torch.float64)
    sizes = torch.tensor([120, 80, 40])
    n, inside = clusters(noise + centres.repeat_interleave(sizes, 0))
    assert n == 3
    assert inside > 200
    # one cloud is at most split in two by chance, and most of its rows are in no cluster
    assert clusters(noise)[1] < 120
