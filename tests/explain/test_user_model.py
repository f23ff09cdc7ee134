"""Beliefs about a user, by enumeration of everything that a user may understand."""

from itertools import product

import pytest
import torch

from sonde.core import InputError, ShapeError
from sonde.explain import UserModel

KNOWN = torch.tensor([0.2, 0.6, 0.9, 0.4], dtype=torch.float64)
NEEDED = torch.tensor([True, True, False, True])


def chance(known):
    return float(torch.where(torch.tensor(known), KNOWN, 1 - KNOWN).prod())


@pytest.mark.truth("enumeration of the sixteen sets of concepts that a user may understand")
@pytest.mark.parametrize("correct", [True, False])
def test_beliefs_are_those_of_all_users_who_would_answer_so(correct):
    user = UserModel(KNOWN, slip=0.15, guess=0.3)
    weights = {}
    for known in product((False, True), repeat=4):
        right = 0.85 if all(k for k, n in zip(known, NEEDED, strict=True) if n) else 0.3
        weights[known] = chance(known) * (right if correct else 1 - right)
    whole = sum(weights.values())
    wanted = [sum(w for k, w in weights.items() if k[i]) / whole for i in range(4)]
    found = user.heard(NEEDED, correct=correct).known
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    every = sum(chance(k) for k in weights if all(a for a, n in zip(k, NEEDED, strict=True) if n))
    assert float(user.foresees(NEEDED[None])[0]) == pytest.approx(every)


@pytest.mark.truth("brute force over the rows that may be shown")
def test_the_choice_is_the_row_that_helps_the_most():
    rows = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1.5, 0, 0, -2.0]])
    user = UserModel(KNOWN, learn=0.7)
    after = []
    for row in rows:
        known = torch.where(row != 0, KNOWN + 0.7 * (1 - KNOWN), KNOWN)
        after.append(sum(float(known[other != 0].prod()) for other in rows))
    assert user.choose(rows) == max(range(4), key=after.__getitem__)
    second = sorted(range(4), key=after.__getitem__)[-2]
    assert user.choose(rows, torch.arange(4) != user.choose(rows)) == second
    with pytest.raises(InputError, match="a row that may be shown, got none"):
        user.choose(rows, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="expected 4 concepts, got 3"):
        user.shown(torch.ones(3))
    with pytest.raises(InputError, match=r"probabilities in \[0, 1\]"):
        UserModel(torch.tensor([0.5, 1.5]))
