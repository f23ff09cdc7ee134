from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from detect.shift_rates import assert_right_rate, comparisons
from narrow import expect
from sonde.core.errors import InputError
from sonde.detect import ClassifierTwoSample
from sonde.detect.classifier_two_sample import hypergeometric_tail
from sonde.stats import HashSample, HashSampleState


def _rows(seed, n, dim=5):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def _heavy(seed, n):
    return torch.from_numpy(np.random.default_rng(seed).standard_cauchy((n, 3)))


def _fisher(table: Any) -> float:
    found: Any = fisher_exact(table, alternative="greater")
    return found.pvalue


@pytest.mark.truth("sklearn LinearDiscriminantAnalysis and scipy.stats.fisher_exact")
def test_matches_sklearn_and_scipy():
    shift = ClassifierTwoSample(shrinkage=0.1)
    first, second = shift.fit(_rows(0, 90)), shift.fit(_rows(1, 80) @ _rows(7, 5) + 0.7)
    x, y = (expect(HashSampleState, side.states["sample"]).rows.numpy() for side in (first, second))
    label = np.repeat([0, 1], 40)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    model.fit(np.vstack([x[:40], y[:40]]), label)
    called: Any = model.predict(np.vstack([x[40:80], y[40:80]]))
    found = first.compare(second)
    assert float(found) == np.mean(called == label)
    right, false = called[40:].sum(), called[:40].sum()
    table = [[right, false], [40 - right, 40 - false]]
    assert found.p == pytest.approx(_fisher(table), rel=1e-9)


@pytest.mark.truth("scipy.stats.fisher_exact")
@pytest.mark.parametrize(("right", "half", "called"), [(58, 100, 100), (0, 5, 3), (7, 9, 12)])
def test_tail(right, half, called):
    table = [[right, called - right], [half - right, half - called + right]]
    want = _fisher(table)
    assert hypergeometric_tail(right, half, called) == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("the promise of an exact test, by simulation")
@pytest.mark.parametrize("draw", [_rows, _heavy])
def test_false_alarms_are_no_more_than_promised(draw):
    found = comparisons(
        ClassifierTwoSample(), lambda seed: (draw(seed, 60), draw(10_000 + seed, 45))
    )
    assert_right_rate([c.p for c in found], conservative=True)
    assert sum(c.p <= 0.2 for c in found) > 4


@pytest.mark.truth("a planted shift of the mean")
def test_power():
    found = comparisons(
        ClassifierTwoSample(), lambda s: (_rows(s, 120), _rows(9_000 + s, 120) + 0.5), 40
    )
    assert np.mean([c.p <= 0.05 for c in found]) > 0.85


def test_rows_are_split_by_draw_and_not_by_place():
    assert ClassifierTwoSample().reads()["sample"] == HashSample(2048)
    x = torch.cat([_rows(0, 50), _rows(1, 50) + 50])
    found = ClassifierTwoSample().between(x, x.flip(0))
    assert found.p > 0.05


def test_three_rows_are_refused():
    with pytest.raises(InputError, match="ClassifierTwoSample: expected at least 4 rows, got 3"):
        ClassifierTwoSample().between(_rows(0, 9), _rows(1, 3))
    group = ["a", "b", "c"] * 3
    with pytest.raises(InputError, match="expected at least 4 independent rows"):
        ClassifierTwoSample().between(_rows(0, 9), _rows(1, 9), group=group)
