"""A detector inside scikit-learn: its own checks, pipelines, clones and signs."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sonde.core import CalibrationError, InputError
from sonde.detect import KNN, MSP, Mahalanobis
from sonde.detect.mahalanobis import MahalanobisScorer
from sonde.run.fitting.sklearn import OutlierDetector
from sonde.stats import CalibratedScorer


def rows(n, seed=0, dim=4):
    return np.random.default_rng(seed).normal(size=(n, dim))


@pytest.mark.truth("scikit-learn's own checks of an estimator")
@parametrize_with_checks([OutlierDetector(calibrate=0.0), OutlierDetector(KNN(k=2), calibrate=0.0)])
def test_scikit_learn_finds_nothing_wrong(estimator, check):
    check(estimator)


@pytest.mark.truth("the detector on plain arrays, and the conformal threshold")
def test_signs_and_thresholds():
    x, label = rows(500), np.array(["cat", "dog"])[np.arange(500) % 2]
    x[label == "dog"] += 6.0
    found = OutlierDetector("mahalanobis", alpha=0.1).fit(x, label)
    new = np.concatenate([rows(200, 1), rows(5, 2) + 30.0])
    scorer = found.scorer_
    assert isinstance(scorer, CalibratedScorer)
    assert isinstance(scorer.scorer, MahalanobisScorer)
    scores = scorer.score(torch.from_numpy(new)).numpy()
    assert np.array_equal(found.score_samples(new), -scores)
    assert np.allclose(found.decision_function(new), -scores - found.offset_)
    assert -found.offset_ == scorer.calibration.threshold(0.1)
    assert np.array_equal(found.predict(new), np.where(scores > -found.offset_, -1, 1))
    assert np.array_equal(found.predict(new) == -1, found.p_values(new) <= 0.1)
    assert found.classes_.tolist() == ["cat", "dog"]
    assert scorer.scorer.mean.shape == (2, 4)
    assert roc_auc_score(np.arange(205) < 200, found.decision_function(new)) == 1.0


@pytest.mark.truth("the share of the fitted rows")
def test_without_held_out_rows_the_threshold_is_that_of_the_fitted_rows():
    found = OutlierDetector(Mahalanobis(), alpha=0.1, calibrate=0.0).fit(rows(300))
    assert (found.predict(rows(300)) == -1).mean() == pytest.approx(0.1, abs=0.004)
    with pytest.raises(InputError, match="no rows were held out"):
        found.p_values(rows(3))


def test_a_pipeline_a_clone_and_a_search():
    x = rows(300) * [1, 10, 100, 1000]
    pipe = make_pipeline(StandardScaler(), OutlierDetector("mahalanobis")).fit(x)
    assert pipe.predict(np.full((1, 4), 1e5)).tolist() == [-1]
    plain = OutlierDetector("mahalanobis").fit(StandardScaler().fit_transform(x))
    assert np.allclose(
        pipe.score_samples(x), plain.score_samples(StandardScaler().fit_transform(x))
    )
    copy: Any = clone(OutlierDetector(KNN(k=3), alpha=0.2))
    given = {"detector": KNN(k=3), "alpha": 0.2, "calibrate": 0.2, "seed": 0}
    assert copy.get_params(deep=False) == given
    other = clone(copy).set_params(detector__k=7)
    assert (other.detector, copy.detector) == (KNN(k=7), KNN(k=3))
    search = GridSearchCV(
        OutlierDetector(calibrate=0.0),
        {"detector": ["mahalanobis", KNN(k=3)]},
        scoring=lambda found, x, y=None: float(found.score_samples(x).mean()),
        cv=2,
    )
    assert search.fit(x).best_params_["detector"] in ("mahalanobis", KNN(k=3))


def test_rows_that_are_not_finite_are_unusual_and_left_out():
    x = rows(300)
    x[5, 2], x[7, 0] = np.nan, np.inf
    found = OutlierDetector().fit(x)
    assert isinstance(found.scorer_, CalibratedScorer)
    assert found.scorer_.n == 298 - found.scorer_.calibration.n
    assert found.predict(x[[5, 7]]).tolist() == [-1, -1]
    assert np.isneginf(found.score_samples(x[[5, 7]])).all()


@pytest.mark.slow
@pytest.mark.truth("the binomial distribution of alarms on fresh rows, one for each fit")
def test_the_rate_holds_where_a_tenth_of_all_rows_is_not_finite():
    alarms, n = 0, 300
    for seed in range(n):
        x = rows(121, seed)
        x[np.random.default_rng(n + seed).random(121) < 0.1, 0] = np.nan
        alarms += OutlierDetector(alpha=0.1, calibrate=0.4).fit(x[:120]).predict(x[120:])[0] == -1
    assert binom.ppf(0.0005, n, 0.06) <= alarms <= binom.ppf(0.9995, n, 0.1)


@pytest.mark.truth("the detector on plain arrays")
def test_logits_are_rows():
    logits = rows(200, dim=3) * 3
    found = OutlierDetector(MSP()).fit(logits)
    want = MSP().fit(logits, logits=logits).score(torch.from_numpy(logits))
    assert np.allclose(found.score_samples(logits), -want.numpy())


@pytest.mark.parametrize("word", ["relative_mahalanobis", "energy", "gen", "kl_matching"])
def test_other_detectors_fit_too(word):
    x, label = rows(400), np.arange(400) % 2
    x[label == 1] += 4.0
    found = OutlierDetector(word).fit(x, label)
    assert np.isfinite(found.decision_function(x)).all()


def test_what_is_refused():
    with pytest.raises(InputError, match="rows or logits alone"):
        OutlierDetector("nac").fit(rows(50))
    with pytest.raises(InputError, match="rows or logits alone"):
        OutlierDetector(3).fit(rows(50))
    with pytest.raises(InputError, match="alpha in"):
        OutlierDetector(alpha=2.0).fit(rows(50))
    with pytest.raises(CalibrationError, match="needs at least 19"):
        OutlierDetector().fit(rows(50))
    with pytest.raises(InputError, match="at least 2 finite rows"):
        OutlierDetector().fit(np.full((50, 2), np.nan))
    with pytest.raises(ValueError, match=r"inconsistent|expected 50 labels"):
        OutlierDetector().fit(rows(50), np.zeros(49))
