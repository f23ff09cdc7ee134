from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from sonde.core.errors import InputError
from sonde.detect import ContrastProbe
from sonde.detect._pair_sample import PairSample
from sonde.detect.contrast_probe import ContrastScorer, contrast_loss
from sonde.engine.running import Running


def _pairs(seed=0, n=150, dim=8, loud=0.5):
    """Statements and their negations: truth on one axis, a topic of the pair, wording by side."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    topic = loud * rng.standard_normal((n, dim))
    axes = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    rows, label = [], []
    for side in (0, 1):
        own = truth if side == 1 else 1 - truth
        noise = 0.5 * rng.standard_normal((n, dim))
        rows.append(topic + noise + np.outer(3.0 * own, axes[0]) + 6.0 * side * axes[1])
        label.append(own)
    columns: dict[str, Any] = {"pair": [*range(n)] * 2, "side": [0] * n + [1] * n}
    return torch.from_numpy(np.concatenate(rows)), np.concatenate(label), columns


@pytest.mark.truth("worked out by hand")
def test_loss():
    assert float(contrast_loss(torch.tensor(0.7), torch.tensor(0.4))) == pytest.approx(0.17)
    certain = contrast_loss(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.5]))
    assert certain.tolist() == [0.0, 0.0, 0.25]


@pytest.mark.parametrize("method", ["ccs", "crc"])
def test_truth_is_found_without_labels(method):
    x, _, columns = _pairs()
    scorer = ContrastProbe(method=method).fit(x, **columns)
    assert scorer.sign == "undefined"
    assert scorer.conventions["auroc_of_labelled"] is None
    fresh, own, new = _pairs(1)
    area = roc_auc_score(own, scorer.score(fresh, torch.tensor(new["side"])))
    assert max(area, 1.0 - area) > 0.97


@pytest.mark.parametrize("method", ["ccs", "crc"])
@pytest.mark.parametrize("positive", [0, 1])
def test_a_few_labels_fix_the_sign(method, positive):
    x, label, columns = _pairs(2)
    few = np.full(len(label), -1)
    few[:8] = label[:8]
    scorer = ContrastProbe(method=method, positive=positive).fit(x, few, **columns)
    scores = scorer.score(x, torch.tensor(columns["side"]))
    assert scorer.sign == "labels"
    assert roc_auc_score(label == positive, scores) > 0.95


@pytest.mark.parametrize("method", ["ccs", "crc"])
def test_what_the_members_of_a_pair_share_cancels(method):
    x, _, columns = _pairs(8, loud=3.0)
    scorer = ContrastProbe(method=method).fit(x, **columns)
    fresh, own, new = _pairs(9, loud=3.0)
    rows = roc_auc_score(own, scorer.score(fresh, torch.tensor(new["side"])))
    pairs = roc_auc_score(own[150:], scorer.pair_score(fresh[:150], fresh[150:]))
    assert max(rows, 1 - rows) < 0.85
    assert max(pairs, 1 - pairs) > 0.97


@pytest.mark.truth("sklearn PCA of the differences of standardised sides")
@pytest.mark.parametrize("seed", range(3, 9))
def test_crc_is_the_first_axis_of_the_differences(seed):
    x, _, columns = _pairs(seed)
    sides = x.numpy().reshape(2, 150, 8)
    z = (sides - sides.mean(1, keepdims=True)) / sides.std(1, keepdims=True)
    pca = PCA(1, svd_solver="full").fit(z[1] - z[0])
    scorer = ContrastProbe(method="crc").fit(x, **columns)
    got = scorer.score(x, torch.tensor(columns["side"])).numpy()
    axis = np.asarray(pca.components_)[0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])  # without labels the largest weight is > 0
    np.testing.assert_allclose(got, (z @ axis).reshape(-1), atol=1e-8)
    assert scorer.value == pytest.approx(pca.explained_variance_ratio_[0])


@pytest.mark.truth("the loss of 200 random directions and of a numerical gradient")
def test_ccs_reaches_a_minimum():
    x, _, columns = _pairs(4, n=60, dim=4)
    scorer = ContrastProbe(l2=0.0).fit(x, **columns)
    side = torch.tensor(columns["side"])

    def loss(factor, turn=None):
        scores = scorer.score(x, side) * factor + (0.0 if turn is None else x @ turn)
        p = torch.sigmoid(scores).reshape(2, -1)
        return float(contrast_loss(p[1], p[0]).mean())

    assert loss(1.0) == pytest.approx(scorer.value)
    rng = torch.Generator().manual_seed(0)
    z = (x.reshape(2, -1, 4) - x.reshape(2, -1, 4).mean(1, keepdim=True)) / x.reshape(2, -1, 4).std(
        1, keepdim=True, correction=0
    )
    for _ in range(200):
        w = 3.0 * torch.randn(4, generator=rng, dtype=torch.float64)
        p = torch.sigmoid(z @ w)
        assert scorer.value <= float(contrast_loss(p[1], p[0]).mean()) + 1e-6


@pytest.mark.truth("one pass over all rows")
def test_members_of_a_pair_may_arrive_apart():
    x, label, columns = _pairs(5)
    pair, side = np.array(columns["pair"]), np.array(columns["side"])
    order = np.random.default_rng(0).permutation(len(x))
    whole, parts = Running(ContrastProbe(m=40)), [Running(ContrastProbe(m=40)) for _ in range(3)]
    ids = np.array([f"row {i}" for i in range(len(x))])
    whole.update(x, label, pair=pair, side=side, ids=ids)
    for running, rows in zip(parts, np.array_split(order, 3), strict=True):
        running.update(x[rows], label[rows], pair=pair[rows], side=side[rows], ids=ids[rows])
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    a, b = whole.result(), parts[2].result()
    assert isinstance(a, ContrastScorer)
    assert isinstance(b, ContrastScorer)
    assert a.n == b.n == 40
    assert torch.equal(a.axis, b.axis)


def test_errors():
    x, label, columns = _pairs(6, n=10)
    with pytest.raises(InputError, match="needs the column 'pair'"):
        ContrastProbe().fit(x, label)
    with pytest.raises(
        InputError, match="expected side 0 or 1, or -1 for a row without a pair, got 2"
    ):
        ContrastProbe().fit(x, label, pair=columns["pair"], side=[2] * 20)
    with pytest.raises(InputError, match="at least 2 pairs with both sides, got 0 among 20 rows"):
        ContrastProbe().fit(x, label, pair=[*range(20)], side=columns["side"])
    with pytest.raises(InputError, match="m of at least 2"):
        ContrastProbe(m=1)
    assert PairSample(4).size_bytes(8) == 2 * 4 * (32 + 32)


def test_rows_of_no_pair_change_nothing():
    x, label, columns = _pairs(10)
    more = {"pair": [*columns["pair"], 0, 0], "side": [*columns["side"], -1, -1]}
    got = ContrastProbe(method="crc").fit(
        torch.cat([x, x[:2] + 9.0]), [*label, 1, 0], pair=more["pair"], side=more["side"]
    )
    want = ContrastProbe(method="crc").fit(x, label, **columns)
    torch.testing.assert_close(got.axis, want.axis)
    assert (got.n, got.conventions["left_out"]) == (150, 2)


def test_constant_units_are_flagged_and_left_out():
    x, _, columns = _pairs(7)
    x[:, 3] = 2.5
    scorer = ContrastProbe(method="crc").fit(x, **columns)
    assert scorer.flags == ("rank_deficient",)
    assert scorer.axis[:, 3].tolist() == [0.0, 0.0]


def test_pairs_that_any_direction_fits_and_pairs_without_a_difference_are_flagged():
    x, _, columns = _pairs(11, n=4)
    wide = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    for method in ("ccs", "crc"):
        probe = ContrastProbe(method=method, restarts=2)
        assert "few_rows" in probe.fit(wide, **columns).flags
        x, label, many = _pairs(11, n=40)
        plain = probe.fit(x, label, **many)
        assert plain.flags == ()
        half = [i for i, s in enumerate(many["side"]) if s == 0]
        same = x[half].repeat(2, 1)
        pair, side = [*range(len(half))] * 2, [0] * len(half) + [1] * len(half)
        found = probe.fit(same, pair=pair, side=side)
        assert "dead" in found.flags
    x[1] = x[0]
    label = [1, 0] + [-1] * (len(x) - 2)
    assert (
        ContrastProbe(method="crc").fit(x, label, **many).sign == "undefined"
    )  # one row, both labels
