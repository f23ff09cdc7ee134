from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import NotLabelled
from sonde.core.stream import Stream
from sonde.detect import FeatureGaps
from sonde.detect.feature_gaps import ContrastSample, UsualAnswers, _principal, logistic
from sonde.metrics import auroc
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.scoring.score import score

DIMS = (5, 7, 6, 4)


def _answers(seed=0, n=240, n_pairs=60, features=3, informative=2):
    """Rows at four sites: contrasts along one axis for each feature, and plain readings of answers.

    At one site the wrong answers lie off along every feature's axis.
    """
    rng = np.random.default_rng(seed)
    side = np.r_[np.tile(np.arange(2 * features), n_pairs), np.full(n, -1)]
    pair = np.r_[np.repeat(np.arange(n_pairs), 2 * features), 1000 + np.arange(n)]
    wrong = rng.integers(0, 2, n)
    label = np.r_[np.full(n_pairs * 2 * features, -1), wrong]
    rows = {}
    for site, dim in enumerate(DIMS):
        x = rng.normal(size=(len(side), dim)) * 0.3
        base = rng.normal(size=(n_pairs, dim))
        for i in np.flatnonzero(side >= 0):
            x[i] += base[pair[i]]
            if side[i] % 2 == 0:
                x[i, side[i] // 2] += 2.0 * np.sin(pair[i] * (1 + side[i]))
        if site == informative:
            x[-n:, :features] += rng.normal(size=(n, features)) + wrong[:, None]
        else:
            x[-n:] += rng.normal(size=(n, dim))
        rows[f"site {site}"] = torch.from_numpy(x)
    columns: dict[str, Any] = {"pair": pair.tolist(), "side": torch.from_numpy(side)}
    return rows, torch.from_numpy(label), columns


def _plain(rows, label):
    return [x[label >= 0] for x in rows.values()], label[label >= 0]


def _fitted(seed=0, change=None, **parameters):
    rows, label, columns = _answers(seed)
    if change is not None:
        columns["side"] = change(columns["side"])
    return FeatureGaps(**parameters).fit(rows, label, **columns)


def _rejection(uncertainty, quality):
    order = np.argsort(uncertainty, kind="stable")
    best = np.argsort(-quality, kind="stable")
    area = [quality[o].cumsum() / np.arange(1, len(quality) + 1) for o in (order, best)]
    mean = quality.mean()
    return (area[0].mean() - mean) / (area[1].mean() - mean)


def _by_hand(rows, label, columns, which, skip):
    """The whole procedure in numpy and scikit-learn; returns layers, chance of wrong and ratio."""
    side, pair = columns["side"].numpy(), np.array(columns["pair"])
    batches = list(Stream.of(rows, label=label, ids=range(len(label)), **columns))
    draw = torch.cat([b.draw("site 0") for b in batches]).numpy().view(np.uint64)
    plain = np.flatnonzero(label.numpy() >= 0)
    plain = plain[np.argsort(draw[plain])]
    wrong = label.numpy()[plain] == 1
    a, b = plain[::2], plain[1::2]
    along, layers = [], []
    for f in range(3):
        best: Any = None
        for layer, x in enumerate(x.numpy() for x in rows.values()):
            if layer < skip:
                continue
            up, down = (np.flatnonzero(side == s) for s in (2 * f, 2 * f + 1))
            up, down = (i[np.argsort(pair[i])] for i in (up, down))
            gap = x[up] - x[down]
            axis = PCA(1).fit(gap).components_[0] if which == "pc" else gap.mean(0)  # pyright: ignore[reportOptionalSubscript]
            axis = axis / np.linalg.norm(axis)
            s = x @ axis
            s = s if roc_auc_score(wrong[::2], s[a]) >= 0.5 else -s
            ratio = _rejection(s[a], 1.0 - wrong[::2])
            if best is None or ratio > best[0]:
                best = ratio, layer, (s - s[b].mean()) / s[b].std(ddof=1)
        layers.append(best[1])
        along.append(best[2])
    z = np.stack(along, 1)
    model = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(z[b], wrong[1::2])
    chance = model.predict_proba(z)[:, 1]
    return layers, chance, _rejection(chance[a], 1.0 - wrong[::2])


@pytest.mark.truth("the procedure in numpy and scikit-learn")
@pytest.mark.parametrize("which", ["pc", "mean"])
def test_equals_the_procedure(which):
    rows, label, columns = _answers()
    scorer = FeatureGaps(direction=which).fit(rows, label, **columns)
    layers, want, ratio = _by_hand(rows, label, columns, which, skip=1)
    assert scorer.conventions["layers"] == layers
    assert scorer.conventions["skipped"] == 1
    got = scorer.score(list(rows.values()))
    assert got.numpy() == pytest.approx(want, abs=1e-6)
    assert float(scorer) == pytest.approx(ratio, abs=1e-6)
    assert (scorer.n, scorer.conventions["pairs"]) == (240, [60, 60, 60])


@pytest.mark.truth("differences made as c + s v, with known c and v")
def test_which_direction_is_found():
    rng = np.random.default_rng(1)
    v, c = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    gap = 3.0 * c + rng.normal(size=(200, 1)) * v + 0.01 * rng.normal(size=(200, 6))
    plain = rng.normal(size=(40, 6))
    low = rng.normal(size=(200, 6))
    x = torch.from_numpy(np.r_[low + gap, low, plain])
    columns: dict[str, Any] = {
        "pair": [*range(200), *range(200), *range(500, 540)],
        "side": [0] * 200 + [1] * 200 + [-1] * 40,
    }
    label = [-1] * 400 + [0, 0, 1, 1] * 10
    for detector, want, other in (
        (FeatureGaps(features=1), v, c),
        (FeatureGaps(features=1, direction="mean"), c, v),
    ):
        scorer = detector.fit(x, label, **columns)
        axis = scorer.gaps[0].direction.numpy()
        assert abs(axis @ want) > 0.99
        assert abs(axis @ other) < 0.15
        assert float(scorer.cosine) < 0.15  # what one finds the other misses


@pytest.mark.truth("numpy.linalg.svd, with fewer, as many and more rows than dimensions")
@pytest.mark.parametrize("n", [3, 5, 8])
def test_principal_axis(n):
    x = np.random.default_rng(n).normal(size=(n, 5))
    centred = x - x.mean(0)
    want = np.linalg.svd(centred)[2][0]
    got = _principal(torch.from_numpy(centred), 1e-9).numpy()
    assert got * np.sign(got @ want) == pytest.approx(want, abs=1e-9)


@pytest.mark.truth("scikit-learn's logistic regression")
@pytest.mark.parametrize("l2", [0.1, 1.0, 10.0])
def test_logistic_regression(l2):
    rng = np.random.default_rng(2)
    z = rng.normal(size=(80, 3))
    wrong = z @ [1.0, -2.0, 0.0] + rng.normal(size=80) > 0.5
    weight, bias = logistic(torch.from_numpy(z), torch.from_numpy(wrong), l2)
    want = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=10_000).fit(z, wrong)
    assert weight.numpy() == pytest.approx(want.coef_[0], abs=1e-6)
    assert bias == pytest.approx(want.intercept_[0], abs=1e-6)
    apart, _ = logistic(torch.from_numpy(z[:, :1]), torch.from_numpy(z[:, 0] > 0), l2)
    assert torch.isfinite(apart).all()


@pytest.mark.truth("a turned direction gets the other sign")
def test_exchanged_prompts_change_nothing():
    rows, label, _ = _answers()

    def exchanged(side):
        return torch.where((side == 2) | (side == 3), 5 - side, side)

    for which in ("pc", "mean"):
        first, second = _fitted(direction=which), _fitted(change=exchanged, direction=which)
        x, _ = _plain(rows, label)
        torch.testing.assert_close(first.score(x), second.score(x), rtol=1e-7, atol=1e-9)


@pytest.mark.truth("the sum over features has no order")
def test_order_of_features_does_not_matter():
    rows, label, _ = _answers()

    def rotated(side):
        return torch.where(side >= 0, (side + 2) % 6, side)

    first, second = _fitted(), _fitted(change=rotated)
    x, _ = _plain(rows, label)
    torch.testing.assert_close(first.score(x), second.score(x), rtol=1e-7, atol=1e-9)
    a, b = first.conventions["layers"], second.conventions["layers"]
    assert [a[2], a[0], a[1]] == b


def test_fresh_answers_are_told_apart_at_the_layer_that_tells():
    scorer = _fitted()
    assert scorer.conventions["layers"] == [2, 2, 2]
    rows, label, _ = _answers(5)
    x, wrong = _plain(rows, label)
    assert auroc(scorer.score(x), wrong, resamples=0).value > 0.8
    late = _fitted(skip=3)
    assert late.conventions["layers"] == [3, 3, 3]


def test_labelled_rows_of_the_contrasts_stand_in_where_no_answer_is_plain():
    rows, label, columns = _answers()
    contrast = label < 0
    some: dict[str, Any] = {
        "pair": [p for p, c in zip(columns["pair"], contrast, strict=True) if c],
        "side": columns["side"][contrast],
    }
    answer = torch.tensor(some["pair"]) % 2
    scorer = FeatureGaps().fit({k: x[contrast] for k, x in rows.items()}, answer, **some)
    assert scorer.n == int(contrast.sum())
    mixed = label.clone()
    mixed[contrast] = answer
    plain = FeatureGaps(m=10_000).fit(rows, mixed, **columns)
    x, _ = _plain(rows, label)
    torch.testing.assert_close(plain.score(x), _fitted(m=10_000).score(x))


@pytest.mark.truth("one fit on the rows of both bundles; p-values counted over usual plain rows")
def test_bundles_merge_and_calibrate(tmp_path):
    rows, label, columns = _answers(n=300)
    ids = [f"row {i}" for i in range(len(label))]

    def stream(keep):
        index = torch.nonzero(keep).flatten()
        return Stream.of(
            {k: x[index] for k, x in rows.items()},
            label=label[index],
            pair=[columns["pair"][i] for i in index.tolist()],
            side=columns["side"][index],
            ids=[ids[i] for i in index.tolist()],
        )

    half = torch.arange(len(label)) % 3 == 0
    whole = fit(FeatureGaps(), stream(half | ~half), calibrate=0, progress=False)
    parts = [fit(FeatureGaps(), stream(k), calibrate=0, progress=False) for k in (half, ~half)]
    x, _ = _plain(rows, label)
    merged = parts[0].merge(parts[1]).result("feature_gaps")
    want = whole.result("feature_gaps").score(x)
    torch.testing.assert_close(merged.score(x), want, rtol=1e-9, atol=1e-9)
    calibrated = fit(FeatureGaps(), stream(half | ~half), progress=False)
    calibrated.save(tmp_path / "f.sonde")
    loaded = Fitted.load(tmp_path / "f.sonde")
    assert calibrated.split is not None
    held = torch.cat([calibrated.split.is_held(b.split_draw) for b in stream(half | ~half)])
    usual = held & (label == 0)
    assert loaded.result("feature_gaps").calibration.n == int(usual.sum())
    fresh = Stream.of(dict(zip(rows, x, strict=True)))
    table = score(loaded, fresh, progress=False)
    assert len(table) == 300
    assert all(0 < p <= 1 for p in table["p"].to_pylist())


def test_rows_that_calibrate():
    side = torch.tensor([-1, -1, -1, 2])
    (batch,) = Stream.of(torch.zeros(4, 1), label=[0, 1, -1, 0], side=side)
    assert UsualAnswers(1).mask(batch, "x").tolist() == [True, False, True, False]
    assert NotLabelled(1).mask(batch, "x").tolist() == [True, False, True, True]


def test_a_feature_that_never_varies_counts_nothing():
    rows, label, columns = _answers()
    for x in rows.values():
        x[columns["side"] == 1] = x[columns["side"] == 0]
    scorer = FeatureGaps().fit(rows, label, **columns)
    assert scorer.flags == ("dead",)
    assert float(scorer.gaps[0].direction.norm()) == 0.0
    assert float(scorer.weight[0]) == pytest.approx(0.0, abs=1e-9)


def test_errors_say_what_to_do():
    rows, label, columns = _answers()
    with pytest.raises(InputError, match="at least 2 answers with sides 6 and 7, the two prompts"):
        FeatureGaps(features=4).fit(rows, label, **columns)
    with pytest.raises(InputError, match="expected sides below 4, two for each feature, got 5"):
        FeatureGaps(features=2).fit(rows, label, **columns)
    with pytest.raises(InputError, match="wrong and correct, in both random halves, got 0 wrong"):
        FeatureGaps().fit(rows, label.clamp(max=0), **columns)
    with pytest.raises(InputError, match="expected skip below 4, the number of sites, got 4"):
        FeatureGaps(skip=4).fit(rows, label, **columns)
    with pytest.raises(InputError, match="needs the column 'side'"):
        FeatureGaps().fit(rows, label, pair=columns["pair"])
    with pytest.raises(ShapeError, match=r"expected rows at 4 sites \(as fitted\), got 1"):
        _fitted().score([torch.zeros(1, 5)])
    with pytest.raises(ShapeError, match=r"FeatureGaps.score: expected dim=6 \(as fitted\)"):
        _fitted().score([torch.zeros(1, 5)] * 4)
    with pytest.raises(InputError, match="features of at least 1, got 0"):
        FeatureGaps(features=0)
    with pytest.raises(InputError, match="expected skip 'auto' or at least 0, got -1"):
        FeatureGaps(skip=-1)


@pytest.mark.truth("differences of rows that share a pair, in numpy")
def test_sample_of_contrasts_joins_the_sides_of_an_answer():
    rng = np.random.default_rng(3)
    pair, side = rng.integers(0, 30, 200), rng.integers(-1, 4, 200)
    x, draw = rng.normal(size=(200, 2)), rng.permutation(200)
    columns = [torch.from_numpy(v) for v in (x, pair, side, draw)]
    sample = ContrastSample(100, 4)
    parts = [[c[k::3] for c in columns] for k in range(3)]
    state = sample.observe(*parts[0])
    for part in parts[1:]:
        state = sample.merge(sample.observe(*part), state)
    first = {}
    for i in np.argsort(-draw):
        first[pair[i], side[i]] = x[i]
    want = [first[p, 1] - first[p, 3] for p in range(30) if (p, 1) in first and (p, 3) in first]
    got = state.differences(1, 3).numpy()
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, np.array(want).tolist()))
