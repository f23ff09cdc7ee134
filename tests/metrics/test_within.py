import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sonde.core.errors import InputError
from sonde.metrics import auroc, auroc_within


def _rows(seed=0, n=120):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 12, n)
    truth = rng.integers(0, 2, n)
    scores = np.round(rng.normal(size=n) + truth + 3 * (group % 3), 1)
    return scores, truth, group


@pytest.mark.truth("every pair of rows of one group, counted")
def test_equals_counted_pairs():
    scores, truth, group = _rows()
    won = pairs = 0.0
    for i in np.flatnonzero(truth):
        for j in np.flatnonzero((truth == 0) & (group == group[i])):
            won += (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
            pairs += 1
    found = auroc_within(scores, truth, group)
    assert found.value == pytest.approx(won / pairs, rel=1e-12)
    assert found.conventions["pairs"] == pairs
    assert found.low < found.value < found.high


@pytest.mark.truth("scikit-learn on a single group")
def test_one_group_is_the_plain_area():
    scores, truth, _ = _rows(1)
    found = auroc_within(scores, truth, np.zeros(120), resamples=0)
    assert found.value == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)


@pytest.mark.truth("by construction: the score is the difficulty of the prompt")
def test_difficulty_of_prompts_tells_nothing_within():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(100), 20)
    hard = rng.uniform(0.05, 0.95, 100)[group]
    truth = (rng.uniform(size=2000) < hard).astype(int)
    scores = hard + 1e-6 * rng.normal(size=2000)
    assert auroc(scores, truth, group, resamples=0).value > 0.75
    assert auroc_within(scores, truth, group, resamples=0).value == pytest.approx(0.5, abs=0.03)


def test_groups_of_one_kind_are_refused():
    with pytest.raises(InputError, match=r"outliers \(label 1\), got 2"):
        auroc_within([1.0, 2.0, 3.0], [0, 0, 1], [0, 0, 1])
    with pytest.raises(InputError, match="expected a group for each of 3 rows, got 2"):
        auroc_within([1.0, 2.0, 3.0], [0, 0, 1], [0, 0])
