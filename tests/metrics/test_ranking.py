"""AUROC, AUPR both ways, FPR at a TPR: printed numbers, scikit-learn, ties, intervals."""

import itertools
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch

from sonde.core.errors import InputError
from sonde.metrics import aupr, auroc, difference, fpr_at_tpr

SCORES = [0.1, 0.4, 0.4, 0.8, 0.4, 0.9]
UNUSUAL = [0, 0, 0, 1, 1, 1]
RNG = np.random.default_rng(4)


def error(metric):
    assert metric.se is not None
    return float(metric.se)


def tied(n=300):
    unusual = RNG.integers(0, 2, n)
    return RNG.integers(0, 12, n) + 2 * unusual, unusual


@pytest.mark.truth("numbers worked out by hand")
def test_printed_numbers():
    assert auroc(SCORES, UNUSUAL).value == pytest.approx(0.88888889, abs=1e-8)
    assert aupr(SCORES, UNUSUAL).value == pytest.approx(0.86666667, abs=1e-8)
    trapezoid = aupr(SCORES, UNUSUAL, interpolation="trapezoid")
    assert trapezoid.value == pytest.approx(0.93333333, abs=1e-8)
    usual = [0.02, 0.05, 0.06, 0.1, 0.1, 0.3, 0.5, 0.95, 0.97, 0.99]
    scores = [k / 20 for k in range(1, 21)] + usual
    found = fpr_at_tpr(scores, [1] * 20 + [0] * 10)
    assert found.value == pytest.approx(0.7, abs=1e-12)
    assert (found.n_positive, found.n_negative) == (20, 10)


@pytest.mark.truth("scikit-learn")
def test_equal_to_scikit_learn_with_ties():
    scores, unusual = tied()
    assert auroc(scores, unusual).value == pytest.approx(
        sklearn.metrics.roc_auc_score(unusual, scores), abs=1e-12
    )
    assert aupr(scores, unusual).value == pytest.approx(
        sklearn.metrics.average_precision_score(unusual, scores), abs=1e-12
    )
    assert aupr(scores, unusual, positive="usual").value == pytest.approx(
        sklearn.metrics.average_precision_score(1 - unusual, -scores), abs=1e-12
    )
    precision, recall, _ = sklearn.metrics.precision_recall_curve(unusual, scores)
    assert aupr(scores, unusual, interpolation="trapezoid").value == pytest.approx(
        sklearn.metrics.auc(recall, precision), abs=1e-12
    )
    for positive, y, s in (("unusual", unusual, scores), ("usual", 1 - unusual, -scores)):
        options: Any = {"positive": positive}
        fpr, tpr, _ = sklearn.metrics.roc_curve(y, s, drop_intermediate=False)
        want = fpr[np.nonzero(tpr >= 0.95 - 1e-12)[0][0]]
        assert fpr_at_tpr(scores, unusual, **options).value == pytest.approx(want)


@pytest.mark.truth("scikit-learn on rows repeated as often as a resample draws them")
@pytest.mark.parametrize("metric", [auroc, aupr, fpr_at_tpr])
def test_resamples_are_of_whole_groups(metric):
    scores, unusual = tied(60)
    group = np.repeat(np.arange(20), 3)
    found = metric(scores, unusual, group, resamples=30, seed=9).resampled
    generator = torch.Generator().manual_seed(9)
    for value in found.tolist():
        drawn = torch.randint(20, (20,), generator=generator).numpy()
        rows = np.concatenate([np.nonzero(group == g)[0] for g in drawn])
        want = metric(scores[rows], unusual[rows], resamples=0).value
        assert value == pytest.approx(want, abs=1e-12)


@pytest.mark.slow
@pytest.mark.truth("simulation: the AUROC of two normals is Phi(1 / sqrt 2)")
def test_intervals_cover_the_truth():
    truth, covered = 0.7602499389, 0
    for i in range(200):
        rng = np.random.default_rng(i)
        scores = np.r_[rng.normal(size=60), 1 + rng.normal(size=60)]
        found = auroc(scores, [0] * 60 + [1] * 60, resamples=300, seed=i)
        covered += found.low <= truth <= found.high
    assert 178 <= covered <= 199


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 10)
    unusual = group % 2
    scores = unusual + np.repeat(rng.normal(size=40), 10)
    wide, narrow = auroc(scores, unusual, group), auroc(scores, unusual)
    assert error(wide) > 2 * error(narrow)
    assert auroc(scores, unusual, group).n == 40


def test_complete_separation_still_has_a_width():
    found = auroc(range(20), [0] * 10 + [1] * 10)
    assert found.value == found.high == 1.0
    assert 0.6 < found.low < 0.95
    assert "saturated" in found.flags
    wide = auroc(range(20), [0] * 10 + [1] * 10, [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5)
    assert wide.low < found.low


def test_the_order_of_rows_and_monotone_maps_change_nothing():
    scores, unusual = tied()
    order = RNG.permutation(len(scores))
    for metric in (auroc, aupr, fpr_at_tpr):
        value = metric(scores, unusual, resamples=0).value
        assert metric(scores[order], unusual[order], resamples=0).value == value
        assert metric(np.exp(scores / 3), unusual, resamples=0).value == value
    assert auroc(-scores, unusual).value == pytest.approx(1 - auroc(scores, unusual).value)
    assert auroc([np.inf, 0, 1], [1, 0, 0]).value == 1.0


@pytest.mark.truth("the same groups drawn by hand for both scores")
def test_differences_are_paired():
    scores, unusual = tied()
    noisy = scores + RNG.normal(size=len(scores)) / 100
    a, b = auroc(scores, unusual), auroc(noisy, unusual)
    gap = difference(a, b)
    assert gap.value == pytest.approx(a.value - b.value, abs=1e-15)
    assert gap.resampled is not None
    assert a.resampled is not None
    assert b.resampled is not None
    assert torch.equal(gap.resampled, a.resampled - b.resampled)
    assert error(gap) < error(a) / 3
    with pytest.raises(InputError, match="same rows, groups, resamples, seed and level"):
        difference(a, auroc(scores, unusual, seed=1))


def test_what_is_refused():
    with pytest.raises(InputError, match=r"3 with label 0 \(in-distribution\) and 0 with label 1"):
        auroc([1, 2, 3], [0, 0, 0])
    with pytest.raises(InputError, match="without NaN"):
        aupr([1, np.nan], [0, 1])
    with pytest.raises(InputError, match="a label for each of 2 rows"):
        auroc([1, 2], [0, 1, 1])
    with pytest.raises(InputError, match=r"labels 0 \(in-distribution\) and 1"):
        auroc([1, 2], [0, 2])
    with pytest.raises(InputError, match="a group for each of 2"):
        auroc([1, 2], [0, 1], [1])
    with pytest.raises(InputError, match="rate in"):
        fpr_at_tpr([1, 2], [0, 1], rate=0)
    with pytest.raises(InputError, match="at least one row"):
        auroc([], [])


@pytest.mark.truth("the same groups as numbers")
def test_groups_may_be_texts():
    scores, unusual = range(20), [0] * 10 + [1] * 10
    numbers = [i // 4 for i in range(20)]
    want = auroc(scores, unusual, numbers, resamples=20)
    names = [f"document {i}" for i in numbers]
    for groups in (
        names,
        np.array(names),
        np.array(names, dtype=object),
        [n.encode() for n in names],
    ):
        found = auroc(scores, unusual, groups, resamples=20)
        assert (found.low, found.high, found.n) == (want.low, want.high, 5)
    with pytest.raises(InputError, match="expected numbers or texts as groups, got None"):
        auroc(scores, unusual, [None] * 20)
    with pytest.raises(InputError, match="a ragged list"):
        auroc(scores, unusual, [[1], [1, 2]])


@pytest.mark.truth("every order of the labels, one by one")
@pytest.mark.parametrize(
    "scores", [range(7), [0, 1, 1, 2, 3, 3, 3], [5] * 7, [0, 0, 1, 2, 3, 4, 5]]
)
@pytest.mark.parametrize("n_unusual", [1, 3, 6])
def test_the_null_is_the_mean_over_all_labels(scores, n_unusual):
    wanted = [
        [int(i in chosen) for i in range(7)]
        for chosen in itertools.combinations(range(7), n_unusual)
    ]
    every: list[dict[str, Any]] = [{}, {"interpolation": "trapezoid"}, {"positive": "usual"}]
    for options in every:
        found = [aupr(scores, labels, resamples=0, **options) for labels in wanted]
        assert found[0].null == pytest.approx(np.mean([float(f.value) for f in found]), abs=1e-12)
    if len(set(scores)) == 7:
        for rate in (0.5, 0.95):
            passed = [fpr_at_tpr(scores, labels, resamples=0, rate=rate) for labels in wanted]
            assert passed[0].null == pytest.approx(
                np.mean([float(f.value) for f in passed]), abs=1e-12
            )
