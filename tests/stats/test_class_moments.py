import itertools

import pytest
import torch

from sonde.core.errors import InputError, StateError
from sonde.stats import ClassMoments, Moments

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(300, 4, dtype=torch.float64, generator=GENERATOR) + 3
LABEL = torch.randint(-1, 3, (300,), generator=GENERATOR) * 7
LABEL[LABEL < 0] = -1


def _merged(statistic, cuts=(0, 1, 50, 51, 200, 300)):
    parts = [statistic.observe(X[a:b], LABEL[a:b]) for a, b in itertools.pairwise(cuts)]
    state = parts[0]
    for part in parts[1:]:
        state = statistic.merge(state, part)
    return state


@pytest.mark.truth("sums over each class by definition")
@pytest.mark.parametrize("scatter", ["pooled", "trace", "diag", "full"])
def test_matches_definition(scatter):
    state = _merged(ClassMoments(scatter))
    assert state.labels.tolist() == [0, 7, 14]
    rows = [X[k == LABEL] for k in (0, 7, 14)]
    assert state.n.tolist() == [len(r) for r in rows]
    torch.testing.assert_close(state.mean, torch.stack([r.mean(0) for r in rows]))
    full = torch.stack([(r - r.mean(0)).T @ (r - r.mean(0)) for r in rows])
    want = {
        "pooled": full.sum(0),
        "full": full,
        "diag": full.diagonal(dim1=1, dim2=2),
        "trace": full.diagonal(dim1=1, dim2=2).sum(1),
    }[scatter]
    torch.testing.assert_close(state.within, want)


@pytest.mark.truth("moments of all rows in one pass")
@pytest.mark.parametrize("scatter", ["pooled", "diag", "full"])
def test_total_counts_unlabelled_rows(scatter):
    total = _merged(ClassMoments(scatter)).total
    want = Moments("diag" if scatter == "diag" else "full").observe(X)
    assert total.n == 300
    torch.testing.assert_close(total.mean, want.mean)
    torch.testing.assert_close(total.scatter, want.scatter)


def test_trace_has_no_total():
    with pytest.raises(StateError, match=r'scatter="diag"'):
        _ = ClassMoments("trace").observe(X, LABEL).total


@pytest.mark.truth("scatter of all labelled rows minus that within classes")
def test_between_completes_within():
    state = ClassMoments().observe(X, LABEL)
    want = Moments().observe(X[LABEL >= 0])
    torch.testing.assert_close(state.between + state.within, want.scatter)
    torch.testing.assert_close(state.grand_mean, want.mean)


def test_only_unlabelled_rows():
    statistic = ClassMoments()
    none = statistic.observe(X, torch.full((300,), -1))
    assert len(none.labels) == 0
    torch.testing.assert_close(none.total.scatter, Moments().observe(X).scatter)
    both = statistic.merge(none, statistic.observe(X, LABEL))
    assert both.n_rows == 600


@pytest.mark.truth("float64 rows without the offset")
def test_large_offset_keeps_the_scatter():
    small = ClassMoments().observe(X, LABEL)
    shifted = ClassMoments().observe((X + 1e4).float(), LABEL)
    torch.testing.assert_close(shifted.within, small.within, rtol=2e-3, atol=0.2)


def test_too_many_classes():
    statistic = ClassMoments(max_classes=2)
    with pytest.raises(InputError, match="at most 2 classes, got 3"):
        statistic.observe(X, LABEL)
    a, b = statistic.observe(X, LABEL.clamp(max=7)), statistic.observe(X[:1], LABEL[:1] * 0 + 9)
    with pytest.raises(InputError, match="got 3"):
        statistic.merge(a, b)


@pytest.mark.truth("a constant has no variance and is its own mean")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_units_do_not_vary(dtype):
    value = (torch.rand(200, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    x, label = value.expand(1000, 200).clone(), torch.arange(1000) % 7 - 1
    for scatter in ("pooled", "diag", "full"):
        statistic = ClassMoments(scatter)
        state = statistic.merge(
            statistic.observe(x[:300], label[:300]), statistic.observe(x[300:], label[300:])
        )
        assert not state.total.variance.any()
        assert not state.between.any()
        assert torch.equal(state.grand_mean, value.double())
