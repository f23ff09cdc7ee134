import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.stats.position_moments import PositionMoments, chosen_coordinates


def _rows(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.normal(size=(n, dim)) + 3), torch.as_tensor(rng.integers(0, 5, n))


@pytest.mark.truth("numpy.cov of the rows at each position")
def test_moments_of_each_position():
    x, position = _rows(200, 6)
    state = PositionMoments(coordinates=4, seed=3).observe(x, position)
    chosen = state.coordinates
    assert len(chosen) == 4
    found = state.covariance(slice(0, 5))
    for p in range(5):
        mine = x[position == p][:, chosen].numpy()
        np.testing.assert_allclose(state.mean[p], mine.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found[p], np.cov(mine.T, bias=True), rtol=1e-10)
    diag = PositionMoments("diag", 4, 3).observe(x, position)
    want = found.diagonal(dim1=1, dim2=2) * state.counts[:, None]
    torch.testing.assert_close(diag.diagonal, want)
    assert diag.cross.numel() == 0


@pytest.mark.truth("one pass over all rows")
def test_parts_that_saw_other_positions_merge():
    x, position = _rows(90, 3)
    statistic = PositionMoments()
    low, high = position < 3, position >= 3
    a, b = statistic.observe(x[low], position[low]), statistic.observe(x[high], position[high])
    for merged in (statistic.merge(a, b), statistic.merge(b, a)):
        whole = statistic.observe(x, position)
        assert torch.equal(merged.counts, whole.counts)
        torch.testing.assert_close(merged.mean, whole.mean)
        torch.testing.assert_close(merged.diagonal, whole.diagonal)
        torch.testing.assert_close(merged.cross, whole.cross)


def test_coordinates_are_drawn_by_the_seed_alone():
    first = chosen_coordinates(512, 100, 0)
    assert torch.equal(first, chosen_coordinates(512, 100, 0))
    assert not torch.equal(first, chosen_coordinates(512, 100, 1))
    assert len(torch.unique(first)) == 100
    assert chosen_coordinates(7, 100, 0).tolist() == list(range(7))
    chosen = torch.cat([chosen_coordinates(20, 5, s) for s in range(800)])
    counts = torch.bincount(chosen, minlength=20)
    assert float(counts.min()) > 150  # of 200 on average, standard deviation 12
    assert float(counts.max()) < 250


def test_refuses_positions_out_of_range():
    with pytest.raises(InputError, match=r"expected positions in \[0, 4\), got 0 to 4"):
        PositionMoments(max_positions=4).observe(torch.zeros(5, 2), torch.arange(5))
    with pytest.raises(InputError, match="got -1 to 0"):
        PositionMoments().observe(torch.zeros(2, 2), torch.tensor([-1, 0]))
    with pytest.raises(InputError, match="at least 1"):
        PositionMoments(coordinates=0)
