"""Class frequencies: uniform ranks for any classes; a class that takes over is detected."""

from unittest.mock import Mock

import numpy as np
import pytest
from scipy.stats import kstest

from sonde.run.fitting.fitted import Fitted
from sonde.serving.changes import ANSWERS, Changes, Seen
from sonde.serving.class_shares import ClassShares
from sonde.serving.verdicts import Verdict


def first_alarm(answers):
    """The number of the answer that opens an event, with everything else left out."""
    changes = Changes(Mock(spec=Fitted, scorers={}, header={}))
    for i, answer in enumerate(answers):
        seen = Seen(b"%d" % i, {}, f"class {answer}")
        if changes.update([Verdict(None, None, {}, None)], 0.0, [seen]):
            assert changes.current.places == (ANSWERS,)
            return i
    return None


@pytest.mark.truth("smoothed ranks of exchangeable answers are independent and uniform")
@pytest.mark.parametrize("n_classes", [1, 2, 100])
def test_ranks_are_uniform_and_independent(n_classes):
    answers = np.random.default_rng(3).zipf(1.5, 4000) % n_classes
    shares = ClassShares(recent=10)
    ranks = np.array([shares.rank(str(answer)) for answer in answers])
    assert kstest(ranks, "uniform").pvalue > 0.01
    assert kstest(ranks[:100], "uniform").pvalue > 0.01, "from the first answers on"
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 0.05


@pytest.mark.truth("the classes before and after the planted change")
@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_many_classes_are_no_change_and_one_that_takes_over_is(n_classes):
    rng = np.random.default_rng(4)
    before, after = rng.integers(n_classes, size=(2, 500))
    assert first_alarm(before) is None
    after[rng.random(500) < 0.8] = n_classes // 2
    alarm = first_alarm([*before, *after])
    assert alarm is not None
    assert 500 <= alarm < 700


@pytest.mark.truth("the answers that are kept")
def test_memory_is_bounded_and_the_last_answers_become_the_reference():
    shares = ClassShares(recent=20)
    for i in range(300):
        shares.rank(f"class {i % 3}")
    shares.thin(30)
    assert shares._n == shares._counts.total() == 30
    for _ in range(20):
        shares.rank("a class of its own", is_reference=False)
    assert shares._n == 30
    shares.learn()
    assert [*shares._counts.values()] == [20]
