import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from measure.digits import DIGITS, NAMES
from sonde.core.errors import InputError
from sonde.measure import cluster_indices

A = [[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [6.0, 2.0]]
B = [[0.0, 0.0], [2.0, 2.0], [6.0, 0.0], [8.0, 2.0]]
ROWS, LABELS = DIGITS[:800], NAMES[:800]


@pytest.mark.truth("values worked out by hand")
@pytest.mark.parametrize(
    ("x", "values"),
    [
        (A, (0.6754446797, 0.3333333333, 18.0, 3.0, 0.0277777778, 0.9)),
        (B, (0.5313703423, 0.4714045208, 9.0, 1.5811388301, 0.0555555556, 0.8181818182)),
    ],
)
def test_small_examples(x, values):
    found = cluster_indices(x, [0, 0, 1, 1]).table().to_pydict()
    assert found["index"][0] == "silhouette"
    assert found["value"] == pytest.approx(values, rel=1e-8)


@pytest.mark.truth("sklearn.metrics, and all distances by scipy")
def test_digits():
    result = cluster_indices(ROWS, LABELS)
    assert result.value == pytest.approx(silhouette_score(ROWS, LABELS), rel=1e-9)
    assert result.davies_bouldin == pytest.approx(davies_bouldin_score(ROWS, LABELS), rel=1e-9)
    ratio = calinski_harabasz_score(ROWS, LABELS)
    assert result.calinski_harabasz == pytest.approx(ratio, rel=1e-9)
    middle = np.stack([ROWS[k == LABELS].mean(0) for k in range(10)])
    within, between = np.square(ROWS - middle[LABELS]).sum(1).mean(), pdist(middle).min() ** 2
    assert result.xie_beni == pytest.approx(within / between, rel=1e-9)
    distance, same = cdist(ROWS, ROWS), LABELS[:, None] == LABELS
    dunn = distance[~same].min() / distance[same].max()
    assert result.dunn == pytest.approx(dunn, rel=1e-9)


@pytest.mark.essential
@pytest.mark.truth("labels that say nothing, and the spread over fresh draws")
def test_nulls_and_errors():
    rng = np.random.default_rng(0)
    label = np.tile(np.arange(3), 60)
    free = [cluster_indices(rng.standard_normal((180, 4)), label) for _ in range(8)]
    assert all(r.se == r.errors["silhouette"] for r in free)
    for name in ("calinski_harabasz", "davies_bouldin", "eta2"):
        want = np.mean([r.nulls[name] for r in free])
        assert np.mean([getattr(r, name) for r in free]) == pytest.approx(want, rel=0.25)
    x = np.eye(3, 4)[label] * 2
    found = [cluster_indices(x + rng.standard_normal((180, 4)), label) for _ in range(14)]
    for name in ("silhouette", "davies_bouldin", "calinski_harabasz", "eta2"):
        values = [float(r) if name == "silhouette" else getattr(r, name) for r in found]
        ratio = np.mean([r.errors[name] for r in found]) / np.std(values, ddof=1)
        assert 0.6 < ratio < 1.6, name


@pytest.mark.truth("documents whose rows are alike, with labels that say nothing of others")
def test_rows_of_a_document_do_not_count_as_near():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 5)
    x = rng.standard_normal((40, 6))[group] + 0.1 * rng.standard_normal((200, 6))
    label = rng.integers(0, 10, 40)[group]
    grouped, alone = cluster_indices(x, label, group=group), cluster_indices(x, label)
    assert abs(float(grouped) - float(torch.as_tensor(grouped.null))) < 0.06
    assert float(alone) - float(torch.as_tensor(alone.null)) > 0.05


@pytest.mark.truth("sklearn.metrics, and the one pair of different groups and classes")
def test_equal_rows_and_groups_of_two_classes():
    x, label = np.array([0.0, 0, 0, 0, 5, 5])[:, None], [0, 0, 1, 1, 2, 2]
    assert cluster_indices(x, label).value == pytest.approx(silhouette_score(x, label))
    line = np.array([0.0, 2, 3, 6])[:, None]  # 2 and 3 are of one document
    assert cluster_indices(line, [0, 0, 1, 1], group=[0, 1, 1, 2]).dunn == pytest.approx(3 / 3)


def test_constant_and_unlabelled_rows():
    dead = cluster_indices(np.ones((20, 2)), np.arange(20) % 2)
    assert math.isnan(float(dead))
    assert "dead" in dead.flags
    result = cluster_indices([*A, [99.0, 99.0]], [0, 0, 1, 1, -1])
    assert result.dunn == pytest.approx(3.0)
    assert "unlabelled" in result.flags


def test_one_class_is_an_error():
    with pytest.raises(InputError, match="ClusterIndices: expected at least two classes, got 1"):
        cluster_indices(A, [0, 0, 0, 0])


@pytest.mark.truth("sklearn.metrics at shares of variance one error apart")
def test_the_error_of_the_ratio_follows_from_that_of_the_share():
    found = cluster_indices(ROWS[:41, :3], LABELS[:41])
    n, count, share = found.n, len(set(LABELS[:41])), found.eta2
    ratio = calinski_harabasz_score(ROWS[:41, :3], LABELS[:41])
    assert ratio == pytest.approx(share / (1 - share) * (n - count) / (count - 1))
    step = 1e-6
    moved = (share + step) / (1 - share - step) * (n - count) / (count - 1)
    slope = (moved - ratio) / step
    assert found.errors["calinski_harabasz"] == pytest.approx(
        found.errors["eta2"] * slope, rel=1e-4
    )


@pytest.mark.truth("a class whose rows are of one document has no pair of documents")
@pytest.mark.parametrize(
    ("group", "known"), [([0] * 6, False), ([0, 0, 0, 1, 1, 1], False), ([0, 1] * 3, True)]
)
def test_classes_without_pairs_have_no_inner_distance(group, known):
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 2.0], [7.0, 1.0], [6.0, 3.0], [8.0, 0.0]])
    found = cluster_indices(x, [0, 0, 0, 1, 1, 1], group=group)
    assert math.isfinite(found.value) == math.isfinite(found.dunn) == known
    assert ("few_rows" in found.flags) != known
