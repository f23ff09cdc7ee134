"""Steps of trajectories: scikit-learn's F1, brute force over trajectories, ties."""

import math

import numpy as np
import pytest
import sklearn.metrics

from sonde.core.errors import InputError
from sonde.metrics import joint_match, localisation, step_f1


def simulated(seed=0, n=40):
    rng = np.random.default_rng(seed)
    names, scores, first = [], [], []
    for i in range(n):
        length = int(rng.integers(1, 9))
        at = int(rng.integers(-1, length))
        names += [100 - i] * length
        scores += rng.integers(0, 4, length).tolist()
        first += [int(t == at) for t in range(length)]
    return np.array(names), np.array(scores), np.array(first)


@pytest.mark.truth("scikit-learn")
def test_f1_is_that_of_scikit_learn():
    names, scores, first = simulated()
    alarm = scores >= 2
    assert step_f1(alarm, first, names).value == pytest.approx(
        sklearn.metrics.f1_score(first, alarm), abs=1e-15
    )
    assert step_f1(alarm, first, names, macro=True).value == pytest.approx(
        sklearn.metrics.f1_score(first, alarm, average="macro"), abs=1e-15
    )
    assert step_f1(alarm, first, names).n == 40


@pytest.mark.truth("a loop over trajectories in Python")
@pytest.mark.parametrize("within", [0, 1, 3])
def test_localisation_by_brute_force(within):
    names, scores, first = simulated(1)
    right = []
    for name in dict.fromkeys(names.tolist()):
        s, f = scores[names == name], first[names == name]
        if f.any():
            top = np.nonzero(s == s.max())[0]
            right.append(np.mean([abs(t - f.argmax()) <= within for t in top]))
    found = localisation(scores, first, names, within=within)
    assert found.value == pytest.approx(np.mean(right), abs=1e-15)
    assert found.n == len(right)
    assert found.low < found.value < found.high


@pytest.mark.truth("a loop over trajectories in Python")
def test_joint_match_by_brute_force():
    names, scores, first = simulated(2)
    alarm = scores == 3
    right = []
    for name in dict.fromkeys(names.tolist()):
        a, f = alarm[names == name], first[names == name]
        right.append(a.any() == f.any() and (not a.any() or a.argmax() == f.argmax()))
    assert joint_match(alarm, first, names).value == pytest.approx(np.mean(right), abs=1e-15)


def test_steps_may_stand_in_any_order_of_trajectories():
    names, scores, first = simulated(3)
    mixed = np.argsort(np.random.default_rng(0).random(len(names)) + 0.0)
    mixed = mixed[np.argsort(mixed % 7, kind="stable")]
    keep = np.concatenate([np.sort(mixed[names[mixed] == n]) for n in sorted(set(names.tolist()))])
    a = localisation(scores, first, names, within=1, resamples=0).value
    b = localisation(scores[keep], first[keep], names[keep], within=1, resamples=0).value
    assert a == b


def test_degenerate_and_refused():
    assert math.isnan(step_f1([0, 0], [0, 0]).value)
    assert step_f1([0, 0], [0, 1]).value == 0
    with pytest.raises(InputError, match="at most one first wrong step"):
        localisation([1, 2], [1, 1], [0, 0])
    with pytest.raises(InputError, match="at least one trajectory with a wrong step"):
        localisation([1, 2], [0, 0], [0, 0])
    with pytest.raises(InputError, match="at least one step"):
        step_f1([], [])


def test_alarms_that_are_no_numbers_are_refused():
    for wrong in (None, "ab", ["a"]):
        with pytest.raises(InputError, match="step_f1: expected alarm as numbers"):
            step_f1(wrong, [0, 1])
