import numpy as np
import pytest
import torch
from scipy.stats.contingency import association
from sklearn.metrics import normalized_mutual_info_score

from sonde.core.errors import InputError
from sonde.measure import spurious_shift


def rows(n=600, seed=0, context_size=0.8, noise=1.0):
    rng = np.random.default_rng(seed)
    concept, context = rng.integers(0, 3, n), rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    x = np.hstack([0.6 * np.eye(3)[concept], context_size * np.eye(4)[context]])
    return x + noise * rng.standard_normal((n, 7)), concept, context


@pytest.mark.truth("closed form: a third and two thirds, however many rows a cell has")
def test_known_shares():
    result = spurious_shift(*rows(noise=0.0))
    assert result.share_concept == pytest.approx(1 / 3, rel=1e-6)
    assert result.share_context == pytest.approx(2 / 3, rel=1e-6)
    assert result.share_interaction == pytest.approx(0.0, abs=1e-6)
    assert result.value == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.truth("scipy's and scikit-learn's association of labels")
def test_association_is_the_peers():
    x, concept, context = rows(300)
    result = spurious_shift(x, concept, context)
    table = np.histogram2d(concept, context, [range(4), range(5)])[0].astype(int)
    assert result.cramers_v == pytest.approx(association(table), rel=1e-9)
    want = normalized_mutual_info_score(concept, context, average_method="geometric")
    assert result.mutual == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("the spread over fresh draws, and contexts drawn by lot")
def test_standard_error_null_and_since():
    found = [spurious_shift(*rows(seed=s)) for s in range(12)]
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.7 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < 1.4
    free = [spurious_shift(*rows(seed=s, context_size=0.0)) for s in range(12)]
    nulls = [float(torch.as_tensor(r.null)) for r in free]
    assert np.mean([float(r) for r in free]) == pytest.approx(np.mean(nulls), abs=0.08)
    moved = found[0].since(free[0])
    assert moved.value == pytest.approx(float(found[0]) - float(free[0]), rel=1e-9)
    assert moved.value > 0.3


@pytest.mark.truth("closed form: an additive design keeps its shares without some of its cells")
def test_empty_cells_leave_the_shares():
    x, concept, context = rows(noise=0.0)
    keep = ~np.isin(3 * context + concept, [1, 6, 11])
    result = spurious_shift(x[keep], concept[keep], context[keep])
    assert result.share_concept == pytest.approx(1 / 3, rel=1e-6)
    assert result.share_context == pytest.approx(2 / 3, rel=1e-6)
    drawn = [rows(seed=s, context_size=0.0) for s in range(12)]
    free = [spurious_shift(*(v[~np.isin(3 * d[2] + d[1], [1, 6])] for v in d)) for d in drawn]
    nulls = [float(torch.as_tensor(r.null)) for r in free]
    assert np.mean([float(r) for r in free]) == pytest.approx(np.mean(nulls), abs=0.08)


def test_contexts_that_nothing_links_are_refused():
    x, concept, context = rows()
    apart = (concept == 0) == (context < 2)
    with pytest.raises(InputError, match="got 6 cells of 3 concepts and 4 contexts"):
        spurious_shift(x[apart], concept[apart], context[apart])
    assert "dead" in spurious_shift(np.ones((600, 2)), concept, context).flags


def test_cells_of_few_rows_are_flagged():
    random = torch.Generator().manual_seed(0)
    for n, is_flagged in ((3, True), (20, False)):
        concept, context = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(n, 1).T
        result = spurious_shift(torch.randn(16 * n, 6, generator=random), concept, context)
        assert ("few_rows" in result.flags) is is_flagged
