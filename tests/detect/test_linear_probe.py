import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from sonde.core.errors import InputError
from sonde.core.hashing import rank_key
from sonde.detect import LinearProbe
from sonde.engine.running import Running
from sonde.metrics import auroc
from sonde.stats import HashSample, HashSampleState


def _rows(seed=0, n=300, dim=5, shift=1.0):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(int)
    mix = rng.standard_normal((dim, dim)) + np.eye(dim)
    x = (rng.standard_normal((n, dim)) + shift * label[:, None]) @ mix + 20.0
    return torch.from_numpy(x), label


@pytest.mark.truth("sklearn Ridge")
@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_ridge(l2):
    x, label = _rows()
    scatter = (x - x.mean(0)).square().sum()
    ridge = Ridge(alpha=l2 * float(scatter) / 5).fit(x.numpy(), 2.0 * label - 1.0)
    scorer = LinearProbe(l2=l2).fit(x, label)
    np.testing.assert_allclose(scorer.score(x), ridge.predict(x.numpy()), rtol=1e-8, atol=1e-9)


@pytest.mark.truth("generalised cross-validation from the hat matrix of every penalty")
@pytest.mark.parametrize("shift", [0.1, 1.0])
def test_ridge_takes_the_penalty_of_least_cross_validation_error(shift):
    x, label = _rows(1, n=60, dim=12, shift=shift)
    z, y = x.numpy() - x.numpy().mean(0), 2.0 * label - 1.0
    scale = np.trace(z.T @ z) / 12
    errors = {}
    for power in range(-5, 2):
        hat = z @ np.linalg.solve(z.T @ z + 10.0**power * scale * np.eye(12), z.T) + 1 / 60
        errors[power] = np.mean((y - hat @ y) ** 2) / (1 - np.trace(hat) / 60) ** 2
    best = min(errors, key=lambda k: errors[k])
    chosen = LinearProbe().fit(x, label).conventions["l2"]
    assert chosen == pytest.approx(10.0**best)


@pytest.mark.truth("sklearn LogisticRegression")
@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_logistic(l2):
    x, label = _rows(2)
    variance = float((x - x.mean(0)).square().mean())
    peer = LogisticRegression(C=1 / (300 * l2 * variance), tol=1e-9, max_iter=5000)
    peer.fit(x.numpy() - 20.0, label)
    scorer = LinearProbe(loss="logistic", l2=l2).fit(x, label)
    want = peer.decision_function(x.numpy() - 20.0)
    np.testing.assert_allclose(scorer.score(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.truth("sklearn LogisticRegression on the same inner split")
def test_logistic_takes_the_penalty_of_least_held_out_loss():
    x, label = _rows(3, n=80, dim=12, shift=0.1)
    running = Running(HashSample(1000))
    running.update(x, label)
    state = running.state
    assert isinstance(state, HashSampleState)
    judges = (rank_key(state.group_draw).argsort().argsort() % 4 == 0).numpy()
    rows = state.rows.numpy()
    own = label[[int((x == torch.from_numpy(r)).all(1).nonzero()[0, 0]) for r in rows]]
    variance = float((x - x.mean(0)).square().mean())
    losses = {}
    for power in range(-5, 2):
        c = 1 / (int((~judges).sum()) * 10.0**power * variance)
        peer = LogisticRegression(C=c, tol=1e-9, max_iter=5000)
        peer.fit(rows[~judges] - rows.mean(0), own[~judges])
        losses[power] = log_loss(own[judges], peer.predict_proba(rows[judges] - rows.mean(0)))
    scorer = LinearProbe(loss="logistic").fit(x, label)
    assert scorer.conventions["l2"] == pytest.approx(10.0 ** min(losses, key=lambda k: losses[k]))


@pytest.mark.parametrize("loss", ["ridge", "logistic"])
def test_scaled_and_shifted_rows_give_the_same_scores(loss):
    x, label = _rows(4)
    want = LinearProbe(loss=loss, l2=0.01).fit(x, label).score(x)
    got = LinearProbe(loss=loss, l2=0.01).fit(x * 50.0 - 7.0, label).score(x * 50.0 - 7.0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_rows_without_a_label_take_no_place_in_the_sample():
    x, label = _rows(5)
    partly = label.copy()
    partly[100:] = -1
    method = LinearProbe(loss="logistic", l2=0.1, m=100)
    scorer = method.fit(x, partly)
    assert scorer.conventions["sampled_rows"] == 100
    want = method.fit(x[:100], label[:100]).score(x)
    torch.testing.assert_close(scorer.score(x), want, rtol=1e-5, atol=1e-6)


def test_errors():
    x, _ = _rows(6, n=40)
    with pytest.raises(InputError, match="l2 'auto' or a number > 0"):
        LinearProbe(l2=0.0)
    with pytest.raises(InputError, match="LinearProbe: expected rows of class 1 and of another"):
        LinearProbe().fit(x)
    with pytest.raises(InputError, match="expected rows that differ"):
        LinearProbe().fit(torch.ones(4, 2), [0, 1, 0, 1])
    with pytest.raises(InputError, match="both parts of the inner split"):
        LinearProbe(loss="logistic").fit(x, [1] + [0] * 39)


@pytest.mark.truth("the same rows without the large column")
@pytest.mark.parametrize("loss", ["ridge", "logistic"])
@pytest.mark.parametrize("size", [1e4, 1e6])
def test_a_column_with_almost_all_variance_does_not_hide_the_others(loss, size):
    draw = torch.Generator().manual_seed(3)
    x, held = (torch.randn(300, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    wide, held_wide = (torch.cat([t, size * t[:, :1].flip(0)], 1) for t in (x, held))
    plain, scorer = (LinearProbe(loss=loss).fit(t, label=(x[:, 1] > 0).long()) for t in (x, wide))
    areas = [
        auroc(one.score(rows), (held[:, 1] > 0).long()).value
        for one, rows in ((plain, held), (scorer, held_wide))
    ]
    assert areas[1] > areas[0] - 0.01 > 0.9
