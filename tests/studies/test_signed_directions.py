"""Rows of planted signed directions, and dictionaries that hold some of them."""

import pytest
import torch

from sonde.explain import Dictionary
from sonde_studies._signed_directions import (
    ACTIVE,
    DIM,
    FEATURES,
    both_signs,
    has_both_signs,
    planted,
    recovered,
)


def _dictionary(directions):
    """Return a dictionary of orthogonal directions that keeps signs."""
    n = len(directions)
    parts = {"encoder": directions, "decoder": directions, "bias": torch.zeros(n)}
    ends = {"centre": torch.zeros(DIM), "offset": torch.zeros(DIM)}
    return Dictionary(value=0.0, act="abstopk", k=n, **parts, **ends)


@pytest.mark.truth("the sum of three directions of sizes 1 to 2, searched in all triples")
def test_a_row_is_a_sum_of_three_directions_of_either_sign():
    x, true = planted(4, 3)
    every = torch.combinations(torch.arange(FEATURES), ACTIVE)
    signs = list[float]()
    for row in x:
        sides = true[every].transpose(1, 2)
        sizes = torch.linalg.pinv(sides) @ row
        missed = ((sides @ sizes[..., None])[..., 0] - row).norm(dim=1)
        best = sizes[int(missed.argmin())]
        assert float(missed.min()) < 1e-4
        assert ((best.abs() > 1 - 1e-3) & (best.abs() < 2 + 1e-3)).all()
        signs += best.sign().tolist()
    assert {-1.0, 1.0} == set(signs)


@pytest.mark.truth("counts of signs by hand")
def test_a_feature_has_both_signs_if_the_rarer_is_over_a_quarter():
    z = torch.tensor([[1.0, 1.0, 1.0, 0.0], [-1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, 0.0],
                      [1.0, -1.0, -2.0, 0.0]])  # fmt: skip
    assert has_both_signs(z).tolist() == [True, False, True, False]


def test_directions_count_that_a_feature_has_up_to_sign():
    true = torch.eye(DIM)[:4]
    found = _dictionary(torch.stack([-true[0], true[1], (true[2] + true[3]) / 2**0.5]))
    assert recovered(found, true) == 0.5
    rows = torch.stack([true[0], -true[0], true[1], true[1]])
    assert both_signs(found, rows, true) == 0.25
