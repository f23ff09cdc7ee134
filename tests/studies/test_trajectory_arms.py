"""Baselines on trajectories of a few steps, by hand."""

import pytest
import torch

from sonde_studies._read_trajectories import Steps, reader_of, surprises
from sonde_studies._trajectory_arms import by_numbers, by_surprise
from sonde_studies.worlds import Step, Trajectory


def _steps(lengths, first):
    position = torch.cat([torch.arange(n) for n in lengths])
    number = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return Steps(torch.zeros(len(position), 1), position, number, torch.tensor(first)[number])


@pytest.mark.truth("pairs of lengths, and places of the commonest wrong step, by hand")
def test_lengths_and_commonest_steps_are_compared_by_hand():
    fit = _steps([3, 3, 3, 3], [1, 1, 2, -1])
    test = _steps([2, 3, 3, 4], [1, -1, 2, -1])
    found = by_numbers(fit, test)
    assert found["length | detection"] == pytest.approx((0 + 0 + 0.5 + 0) / 4)
    assert found["step prior | localisation"] == 0.5


def test_the_surprise_of_a_trajectory_is_that_of_its_most_surprising_step():
    model = reader_of(0, 1)
    steps = [tuple(Step("", f"add {a}", str(a + 1)) for a in range(n)) for n in (2, 3, 4, 3)]
    made = [
        Trajectory(str(i), str(i), "a 1 + 2", s, first)
        for i, (s, first) in enumerate(zip(steps, (1, -1, 0, -1), strict=True))
    ]
    of = _steps([2, 3, 4, 3], [1, -1, 0, -1])
    score = surprises(model, made)
    assert len(score) == 12
    highest = [float(part.max()) for part in score.split([2, 3, 4, 3])]
    pairs = [(highest[i], highest[j]) for i in (0, 2) for j in (1, 3)]
    wins = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / 4
    found = by_surprise("some", model, made, of)
    assert found["largest surprise, some | detection"] == pytest.approx(wins)
