import numpy as np
import pytest
import torch

from sonde.stats.joint_counts import as_symbols, information_nats, joint_counts


@pytest.mark.truth("the definition in numpy on 2000 rows of unrelated symbols")
def test_known_information():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 30, 2000), rng.integers(0, 10, 2000)
    counts = joint_counts(torch.from_numpy(np.stack([a, b], 1)), torch.from_numpy(b))
    np.testing.assert_array_equal(counts[0], np.histogram2d(a, b, [range(31), range(11)])[0])
    p = counts[0].numpy() / 2000
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = p * np.log(p / p.sum(0) / p.sum(1, keepdims=True))
    found = information_nats(counts)
    assert float(found[0]) == pytest.approx(np.nansum(terms), rel=1e-10)
    assert float(found[1]) == pytest.approx(-(p.sum(0) * np.log(p.sum(0))).sum(), rel=1e-10)


@pytest.mark.truth("counts of planted ties")
def test_bins_hold_equal_numbers_and_ties_stay_together():
    x = torch.stack([torch.randperm(100).double(), torch.arange(100.0).clamp(min=60)], 1)
    found = as_symbols(x.double(), 5)
    assert torch.bincount(found[:, 0]).tolist() == [20] * 5
    assert len(torch.unique(found[:60, 1])) == 1
    few = as_symbols(torch.tensor([[-1.0], [7.0], [-1.0], [0.5]]), 3)
    assert few.flatten().tolist() == [0, 2, 0, 1]
    torch.testing.assert_close(as_symbols(x.double().exp(), 5), found)
