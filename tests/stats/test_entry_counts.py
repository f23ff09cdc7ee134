import numpy as np
import pytest
import torch

from sonde.stats import EntryCounts


@pytest.mark.truth("numpy.quantile")
@pytest.mark.parametrize("q", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_quantiles_of_all_entries(q, dtype):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 5)) * 3 + 1).to(dtype)
    want = float(np.quantile(x.double().numpy(), q))
    found = EntryCounts().observe(x).quantile(q)
    assert found == pytest.approx(want, rel=2**-7)
    if q in (0.0, 1.0):
        assert found == pytest.approx(want, rel=2**-7)
    elif dtype != torch.bfloat16:
        assert found == pytest.approx(want, rel=1e-3, abs=1e-3)


@pytest.mark.truth("a histogram between the edges of the bins")
def test_counts_fall_between_their_edges():
    x = torch.tensor([[1.0, 1.0078124, 1.0078125], [-1.0, 0.0, -0.0]])
    counts = EntryCounts().observe(x).counts
    one, after = 0x3F80, 0x3F81
    assert counts[one] == 2
    assert counts[after] == 1
    assert counts[one + 0x8000] == 1
    assert counts[0] + counts[0x8000] == 2
    assert int(counts.sum()) == 6


def test_a_single_value_is_exact():
    x = torch.full((7, 3), -2.7)
    assert EntryCounts().observe(x).quantile(0.9) == float(x[0, 0])


def test_huge_and_tiny_entries_stay_in_their_range():
    x = torch.tensor([[-3e38, -1e-44, 1e-44, 3e38]])
    state = EntryCounts().observe(x)
    for q in (0.0, 0.4, 0.6, 1.0):
        assert float(x.min()) <= state.quantile(q) <= float(x.max())
    assert abs(state.quantile(0.5)) < 1e-30


def test_a_batch_is_not_written_to():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    EntryCounts().observe(x)
    assert torch.equal(x, kept)
