"""The pull of a slow teacher over the tasks of continual learning."""

import pytest

from sonde_studies._tasks_in_turn import PAIRS, PULL


def test_a_growing_pull_is_as_strong_in_the_mean_as_a_constant_one():
    grows, same = ([PULL[rule].weight(task) for task in range(PAIRS - 1)]
                   for rule in ("rising teacher", "slow teacher"))  # fmt: skip
    assert grows == sorted(set(grows))
    assert sum(grows) == pytest.approx(sum(same))
