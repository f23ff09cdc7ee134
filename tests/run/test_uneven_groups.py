"""Groups of one row that spread widely and of many rows that do not: each counts alike."""

import numpy as np
import pytest
import torch

from sonde.core import Stream
from sonde.core.shift import Side
from sonde.detect import (
    MMD,
    Frechet,
    Mahalanobis,
    NNGuide,
)
from sonde.run.comparing.drift import drift
from sonde.run.fitting.fit import fit
from sonde.stats import HashSampleState


def _texts(short, long, rows, seed):
    """Return rows and their groups; a random row of a random group is wide with one chance."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([2 * rng.normal(size=(short, 3)), rng.normal(size=(long * rows, 3))])
    group = np.r_[np.arange(short), short + np.repeat(np.arange(long), rows)]
    return torch.from_numpy(x), [f"{seed} {k}" for k in group]


def _side(shift, texts) -> Side:
    return shift.fit(texts[0], group=texts[1])


@pytest.mark.slow
@pytest.mark.truth("no change: three in four groups of both sides are short")
@pytest.mark.parametrize(
    ("shift", "groups"),
    [
        (MMD(m=64, permutations=39), 20),
        (Frechet(permutations=39), 300),
    ],
    ids=["mmd", "frechet"],
)
def test_a_shift_of_uneven_groups_alarms_as_often_as_promised(shift, groups):
    alarms = 0
    for seed in range(20):
        first = _side(shift, _texts(3 * groups, groups, 50, seed))
        second = _side(shift, _texts(3 * groups // 2, groups // 2, 2, 100 + seed))
        alarms += first.compare(second).p <= 0.05
    assert alarms <= 4, f"{alarms} alarms of 20 at 5 %"


@pytest.mark.slow
@pytest.mark.truth("the promise: one row of a new group alarms at the rate asked for")
def test_the_groups_that_calibrate_are_taken_whatever_their_size():
    rates = []
    for seed in range(6):
        x, group = _texts(450, 150, 150, seed)
        stream = Stream.of(x, group=group, ids=[f"{seed} {i}" for i in range(len(x))])
        scorer = fit(Mahalanobis(), stream, calibrate=0.3, progress=False).result("mahalanobis")
        assert scorer.calibration.n > 120  # of about 180 groups held out none is lost
        new, whose = _texts(450, 150, 2, 100 + seed)
        one = np.unique(whose, return_index=True)[1]
        rates.append(
            float((scorer.calibration.p_value(scorer.score(new[one])) <= 0.05).mean(dtype=float))
        )
    assert np.mean(rates) <= 0.075


@pytest.mark.truth("the columns of the chosen rows, found again by their values")
def test_all_columns_are_those_of_the_same_rows():
    x, group = _texts(60, 30, 200, 0)
    logits = torch.stack([x[:, 0], x.sum(1)], 1)
    stream = Stream.of(x, group=group, logits=logits)
    bundle = fit(NNGuide(), stream, calibrate=0.5, progress=False)
    held = [s for i, s in bundle.states.items() if i.endswith("held")]
    states = [s for s in held if isinstance(s, HashSampleState)]
    rows, answers = sorted((s.rows for s in states), key=lambda r: -r.shape[1])
    assert len(rows) == len(states[0].group.unique()) > 30
    assert torch.equal(answers, torch.stack([rows[:, 0], rows.sum(1)], 1))


def test_bundles_of_detectors_are_compared_by_groups():
    sides = [_texts(200, 60, rows, seed) for rows, seed in ((200, 0), (2, 1))]
    first, second = (
        fit(Mahalanobis(), Stream.of(x, group=group), calibrate=0.5, progress=False)
        for x, group in sides
    )
    found = drift(first, second, [MMD(permutations=99)])["mmd", "x"]
    held = [b.result("mahalanobis").calibration.n for b in (first, second)]
    assert found.sides == tuple(held)
    assert min(held) > 105  # of about 130 groups each
    assert found.p > 0.05
