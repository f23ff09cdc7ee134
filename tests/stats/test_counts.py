import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.stats import Histogram, LogHistogram, Symbols, log_bins, log_centres

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(400, 3, generator=GENERATOR)
LABEL = torch.randint(-1, 3, (400,), generator=GENERATOR)


@pytest.mark.truth("numpy.histogram")
def test_histogram():
    edges = torch.tensor([-1.0, 0.0, 0.5])
    state = Histogram(edges).observe(X)
    for unit in range(3):
        want, _ = np.histogram(X[:, unit], [-np.inf, -1, 0, 0.5, np.inf])
        assert state.counts[unit].tolist() == want.tolist()
    assert state.n.tolist() == [400] * 3


@pytest.mark.truth("numpy.histogram of each class")
def test_histogram_of_classes_with_edges_of_each_unit():
    edges = torch.stack([torch.linspace(-1, 1, 4) * s for s in (1, 2, 3)])
    state = Histogram(edges, classes=3).observe(X, LABEL)
    for unit in range(3):
        for k in range(3):
            cuts = [-np.inf, *edges[unit].tolist(), np.inf]
            want, _ = np.histogram(X[k == LABEL, unit].double(), cuts)
            assert state.counts[unit, :, k].tolist() == want.tolist()


def test_values_on_an_edge_belong_above_and_nan_apart():
    x = torch.tensor([[0.0], [1.0], [float("nan")]])
    state = Histogram(torch.tensor([0.0, 1.0])).observe(x)
    assert state.counts.tolist() == [[0, 1, 1]]
    assert state.n_nan.tolist() == [1]


def test_histogram_refuses():
    with pytest.raises(InputError, match="ascending"):
        Histogram(torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="labels below 2, got 2"):
        Histogram(torch.zeros(1), classes=2).observe(X, LABEL)


@pytest.mark.truth("exponent and quarter from the logarithm in float64")
def test_log_bins():
    x = torch.randn(4000, generator=GENERATOR).double() * 10.0 ** torch.randint(
        -9, 7, (4000,), generator=GENERATOR
    )
    # Numbers below 2^-40, which are drawn now and then, are in the first bin of their sign.
    quarter = np.maximum(np.floor(4 * np.log2(np.abs(x.numpy()))) + 160, 0)
    want = np.where(x < 0, 259 - quarter, 261 + quarter)
    assert log_bins(x).tolist() == want.tolist()
    assert torch.equal(log_bins(log_centres()), torch.arange(521))


def test_log_bins_at_the_ends():
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 1.0, 2.0**0.25])
    assert log_bins(x).tolist() == [260, 260, 261, 259, 520, 0, 421, 422]


@pytest.mark.truth("the product by hand, and numpy quantiles")
def test_log_histogram_of_a_product():
    grad = torch.randn(400, 3, generator=GENERATOR)
    state = LogHistogram(("x", "grad")).observe(X, grad)
    assert torch.equal(state.counts, LogHistogram().observe(X * grad).counts)
    found = state.quantile(0.9, absolute=True)
    want = torch.quantile((X * grad).abs().double(), 0.9, dim=0)
    assert bool(((found / want).log2().abs() < 0.3).all())
    low = state.quantile(0.1)
    assert bool(((low / torch.quantile((X * grad).double(), 0.1, dim=0)).log2().abs() < 0.3).all())


def test_mostly_zero_units_have_zero_quantiles():
    x = torch.zeros(10, 1)
    x[9] = 3.0
    assert float(LogHistogram().observe(x).quantile(0.9, absolute=True)) == 0.0


@pytest.mark.truth("Histogram at edges that lie on the grid")
def test_rebinned():
    edges = torch.tensor([-2.0, -0.5, 0.25, 1.0])
    state = LogHistogram().observe(X)
    want = Histogram(edges.double()).observe(X).counts
    assert torch.equal(state.rebinned(edges), want.double())


@pytest.mark.truth("counted from the rows")
def test_rebinned_shares_the_bins_that_an_edge_cuts():
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[:500] = 0.0
    edges = torch.tensor([-0.9, -0.55, -1e-20, 0.0, 1e-20, 0.31, 0.33, 0.35, 5.0])
    found = LogHistogram().observe(x).rebinned(edges)
    want = torch.diff((x[:, :, None] < edges).sum(0), prepend=torch.zeros(2, 1).long())
    torch.testing.assert_close(found[:, :-1], want.double(), atol=12, rtol=0)
    assert found[:, 4].tolist() == pytest.approx([500.0, 500.0])
    assert found.sum(1).tolist() == pytest.approx([4000.0, 4000.0])


@pytest.mark.truth("collections of tuples")
def test_symbols():
    edges = torch.tensor([0.0])
    state = Symbols(edges).observe(X)
    patterns = {}
    for row in (X >= 0).tolist():
        patterns[tuple(row)] = patterns.get(tuple(row), 0) + 1
    assert sorted(state.counts.flatten().tolist()) == sorted(patterns.values())
    assert (state.n, state.saturated) == (400, 0)


def test_symbols_saturate_but_keep_exact_counts():
    edges = torch.tensor([-0.5, 0.5])
    full, capped = Symbols(edges, classes=3), Symbols(edges, classes=3, max_symbols=5)
    want = full.observe(X, LABEL)
    state = capped.merge(capped.observe(X[:99], LABEL[:99]), capped.observe(X[99:], LABEL[99:]))
    assert state.saturated == 1
    assert torch.equal(state.symbols, want.symbols[:5])
    assert torch.equal(state.counts, want.counts[:5])
    assert state.n == int((LABEL >= 0).sum())
