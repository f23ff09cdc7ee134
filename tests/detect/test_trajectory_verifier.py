import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sonde.core.errors import InputError, StateError
from sonde.core.reduction import OWN
from sonde.detect import TrajectoryVerifier
from sonde.detect.trajectory_verifier import TrajectoryScorer
from sonde.engine.running import Running
from sonde.metrics import joint_match, localisation


def _trajectories(seed=0, n=120, dim=4, gap=3.0, hidden=False):
    """Steps of Gaussian noise; half of the trajectories are shifted at one step."""
    rng = np.random.default_rng(seed)
    rows, first, position, who = [], [], [], []
    for i in range(n):
        steps = int(rng.integers(3, 8))
        wrong = int(rng.integers(steps)) if i % 2 else -1
        x = rng.standard_normal((steps, dim))
        if wrong >= 0:
            x[wrong, 0] += gap
        rows.append(x)
        first += [-2 if hidden and wrong >= 0 else wrong] * steps
        position += range(steps)
        who += [i] * steps
    columns: dict[str, Any] = {
        "first_error": np.array(first),
        "position": np.array(position),
        "ids": [f"t{i}" for i in who],
        "group": [f"t{i}" for i in who],
    }
    return torch.from_numpy(np.concatenate(rows)), columns, np.array(who)


def _truth(columns, who):
    first = columns["first_error"]
    return [int(first[who == i][0]) for i in range(int(who.max()) + 1)]


def _design(x, position):
    return np.column_stack([x.numpy(), np.log1p(position)])


@pytest.mark.truth("sklearn LogisticRegression on the steps at risk")
def test_hazard_is_a_logistic_model_of_the_steps_at_risk():
    x, columns, who = _trajectories()
    first, position = columns["first_error"], columns["position"]
    scorer = TrajectoryVerifier(l2=1e-3).fit(x, **columns)
    z = _design(x, position)
    z = (z - z.mean(0)) / z.std(0)
    risk = (first < 0) | (position <= first)
    n = len(np.unique(who))
    peer = LogisticRegression(C=1 / (1e-3 * n), tol=1e-10, max_iter=10_000)
    peer.fit(z[risk], (position == first)[risk])
    want = peer.predict_proba(z)[:, 1]
    got = scorer.score(x, torch.from_numpy(position))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert scorer.conventions["converged"]
    assert scorer.conventions["walks"] <= 15
    assert (scorer.n, scorer.conventions["wrong"]) == (120, 60)


@pytest.mark.truth("scipy minimising the loss written out over each trajectory")
def test_trajectories_of_which_only_the_verdict_is_known():
    x, columns, who = _trajectories(1, n=40, dim=2, hidden=True)
    first, position = columns["first_error"], columns["position"]
    z = _design(x, position)
    z = (z - z.mean(0)) / z.std(0)

    def loss(v):
        hazard = 1 / (1 + np.exp(-(z @ v[:-1] + v[-1])))
        none = np.array([np.prod(1 - hazard[who == i]) for i in range(40)])
        wrong = np.array([first[who == i][0] == -2 for i in range(40)])
        return -np.log(np.where(wrong, 1 - none, none)).mean() + 0.005 * v[:-1] @ v[:-1]

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).fun
    scorer = TrajectoryVerifier(l2=0.01).fit(x, **columns)
    assert scorer.value == pytest.approx(best, rel=1e-6)
    hazard = scorer.score(x, torch.from_numpy(position)).numpy()
    assert roc_auc_score(_trajectories(1, n=40, dim=2)[1]["first_error"] == position, hazard) > 0.9


@pytest.mark.truth("sklearn LinearDiscriminantAnalysis on the steps at risk")
def test_lda_head():
    x, columns, _ = _trajectories(2)
    first, position = columns["first_error"], columns["position"]
    risk = (first < 0) | (position <= first)
    z = _design(x, position)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(z[risk], (position == first)[risk])
    scorer = TrajectoryVerifier(head="lda", shrinkage=0.0).fit(x, **columns)
    got = scorer.score(x, torch.from_numpy(position))
    np.testing.assert_allclose(got, lda.predict_proba(z)[:, 1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("head", ["hazard", "lda"])
def test_verdict_and_place_on_fresh_trajectories(head):
    x, columns, _ = _trajectories(3, n=300, gap=5.0)
    scorer = TrajectoryVerifier(head=head).fit(x, **columns)
    fresh, new, who = _trajectories(4, n=200, gap=5.0)
    found = scorer.localise(fresh, torch.from_numpy(new["position"]), torch.from_numpy(who))
    truth = _truth(new, who)
    assert roc_auc_score(np.array(truth) >= 0, found.wrong) > 0.95
    wrong_step = new["first_error"] == new["position"]
    answers = found.answers()[torch.from_numpy(who)]
    alarm = answers == torch.from_numpy(new["position"])
    assert localisation(found.first, wrong_step, who).value > 0.85
    assert joint_match(alarm, wrong_step, who).value > 0.85
    for i in range(10):
        assert bool((found.alarm[torch.from_numpy(who == i)].diff() >= 0).all())


def test_score_of_a_trajectory_is_the_chance_that_some_step_is_wrong():
    x, columns, who = _trajectories(5)
    scorer = TrajectoryVerifier().fit(x, **columns)
    position = torch.from_numpy(columns["position"])
    hazard = scorer.score(x, position)
    found = scorer.reduced(hazard, torch.from_numpy(who), OWN, x, position)
    want = [1 - math.prod((1 - hazard[torch.from_numpy(who == i)]).tolist()) for i in range(120)]
    assert found.score.tolist() == pytest.approx(want)
    assert float(scorer.reduced(hazard, torch.from_numpy(who), "max", x, position).score[0]) == (
        pytest.approx(float(hazard[torch.from_numpy(who == 0)].max()))
    )
    assert TrajectoryVerifier.reduces


@pytest.mark.truth("one pass over all rows")
def test_lda_merges_exactly_and_hazard_refuses():
    x, columns, who = _trajectories(6)
    method = TrajectoryVerifier(head="lda")
    want = method.fit(x, **columns)
    parts = [Running(method), Running(method)]
    for running, mine in zip(parts, (who < 40, who >= 40), strict=True):
        running.update(x[torch.from_numpy(mine)], first_error=columns["first_error"][mine],
                       position=columns["position"][mine])  # fmt: skip
    parts[0].merge(parts[1])
    got = parts[0].result()
    assert isinstance(got, TrajectoryScorer)
    position = torch.from_numpy(columns["position"])
    torch.testing.assert_close(got.score(x, position), want.score(x, position))
    trained = [Running(TrajectoryVerifier()), Running(TrajectoryVerifier())]
    for running in trained:
        running.update(x, **columns)
    with pytest.raises(StateError, match="a trained state cannot be merged"):
        trained[0].merge(trained[1])


def test_what_is_not_known_changes_nothing():
    x, columns, who = _trajectories(7)
    unknown = who >= 100
    half = {**columns, "first_error": np.where(unknown, -3, columns["first_error"])}
    known: dict[str, Any] = {k: np.array(v)[~unknown] for k, v in columns.items()}
    for head in ("hazard", "lda"):
        method = TrajectoryVerifier(head=head)
        a, b = method.fit(x, **half), method.fit(x[torch.from_numpy(~unknown)], **known)
        torch.testing.assert_close(a.axis, b.axis)
        assert a.n == b.n


def test_trajectories_whose_steps_lie_apart_are_refused():
    who, step = torch.arange(900) // 3, torch.arange(900) % 3
    x = torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(900, generator=torch.Generator().manual_seed(1))
    names = [str(w) for w in who[order].tolist()]
    first = torch.where(who % 2 == 1, 1, -1)
    given: dict[str, Any] = {"first_error": first[order], "position": step[order], "ids": names}
    groups: tuple[dict[str, Any], ...] = ({}, {"group": names})
    for more in groups:
        with pytest.raises(InputError, match="rows of a group together"):
            TrajectoryVerifier().fit(x[order], **given, **more)


def test_errors():
    x, columns, _ = _trajectories(8, n=10)
    with pytest.raises(InputError, match="needs the column 'first_error'"):
        TrajectoryVerifier().fit(x, position=columns["position"])
    clean: dict[str, Any] = {**columns, "first_error": np.full(len(x), -1)}
    with pytest.raises(InputError, match=r"got 10 correct and 0 wrong\. .* -1 if all steps"):
        TrajectoryVerifier().fit(x, **clean)
    with pytest.raises(InputError, match="expected correct and wrong steps"):
        TrajectoryVerifier(head="lda").fit(x, **clean)
    broken, hidden, who = _trajectories(9, hidden=True)
    broken[int(np.flatnonzero(who == 1)[1])] = math.nan
    with pytest.raises(InputError, match=r"all steps of a trajectory with a known .*, got steps"):
        TrajectoryVerifier().fit(broken, **hidden)
    with pytest.raises(InputError, match=r"l2 above 0, got 0\.0"):
        TrajectoryVerifier(l2=0.0)
    assert TrajectoryVerifier(rows="step_ends").reading() == {"reducer": "step_ends"}
