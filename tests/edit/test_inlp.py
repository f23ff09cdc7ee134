"""Rounds of linear probes on sums against the same rounds on rows."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from edit.test_leace import CONTEXT, SITE, rows
from sonde.core import InputError
from sonde.edit import Inlp, Leace


@pytest.mark.truth("sklearn LinearDiscriminantAnalysis, refitted to the projected rows each round")
def test_rounds_on_sums_are_rounds_on_rows():
    x, label = rows(1500, 8, 3)
    found = Inlp(max_rounds=2, margin=0.0, shrinkage=0.0).fit(x, label)
    z = (x - x.mean(0)).numpy()
    basis = np.zeros((8, 0))
    accuracy = []
    for _ in range(3):
        rest = np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]
        probe = LinearDiscriminantAnalysis(solver="lsqr").fit(z @ rest, label)
        accuracy.append(probe.score(z @ rest, label))
        normal = rest @ np.linalg.svd(probe.coef_.T, full_matrices=False)[0][:, :2]
        basis = np.concatenate([basis, normal], 1)
    torch.testing.assert_close(
        found.left @ found.right.T, torch.from_numpy(basis[:, :4] @ basis[:, :4].T)
    )
    assert found.conventions["accuracy_before"] == pytest.approx(accuracy[0], abs=1e-9)
    assert found.conventions["accuracy"] == pytest.approx(accuracy[2], abs=1e-9)


def test_it_stops_at_the_majority_and_changes_more_than_leace():
    x, label = rows(4000, 8, 2)
    found = Inlp().fit(x, label)
    said = found.conventions
    assert said["accuracy_before"] > 0.6
    assert said["accuracy"] <= said["majority"] + 0.01
    assert 1 <= said["rounds"] < 8
    assert found.value > Leace().fit(x, label).value
    projector = torch.eye(8) - found.left @ found.right.T
    torch.testing.assert_close(projector @ projector, projector)
    new = found.edit().apply(x, SITE, CONTEXT)
    torch.testing.assert_close(new.mean(0), x.mean(0))


def test_units_and_a_concept_that_rows_say_nothing_of():
    x, label = rows(600, 6, 3)
    found, large = Inlp(max_rounds=2).fit(x, label), Inlp(max_rounds=2).fit(x * 1e9, label)
    assert found.rank == large.rank > 2
    torch.testing.assert_close(large.left @ large.right.T, found.left @ found.right.T)
    silent = Inlp(margin=0.0).fit(x.repeat(2, 1), [0] * 600 + [1] * 600)
    assert (silent.rank, silent.conventions["rounds"]) == (0, 0)
    assert silent.conventions["accuracy"] == silent.conventions["majority"] == 0.5


def test_bad_input():
    with pytest.raises(InputError, match="max_rounds of at least 1"):
        Inlp(max_rounds=0)
    with pytest.raises(InputError, match="at least two classes"):
        Inlp().fit(torch.ones(4, 2), [1, 1, 1, 1])


@pytest.mark.parametrize("seed", range(6))
def test_what_rounding_leaves_of_a_gap_is_no_gap(seed):
    """Rows around two means, alike in every direction: one probe takes the gap, rounding stays."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=torch.float64)).Q
    ones = torch.ones(6, 1, dtype=torch.float64)
    simplex = torch.linalg.qr(ones, mode="complete").Q[:, 1:]  # its six corners, around 0
    gap = torch.randn(5, generator=rng, dtype=torch.float64)
    x = torch.cat([simplex + gap / 3, simplex @ turn - gap / 3])
    label = torch.arange(2).repeat_interleave(6)
    order = torch.randperm(12, generator=rng)
    found = Inlp(shrinkage=0.0).fit(x[order], label[order])
    assert (found.rank, found.conventions["rounds"]) == (1, 1)
    assert found.conventions["accuracy"] == found.conventions["majority"] == 0.5
