"""What each unit adds to a score: sums, fits without the unit, and a unit that was planted."""

import pytest
import torch

from contract.statistics import exported_instruments
from sonde.core.instrument import Detector
from sonde.core.result import Scorer
from sonde.core.statistic import parameter_names
from sonde.detect import NAC, PaDiM, PatchCore, RelativeMahalanobis, ViM
from sonde.testing import instrument_laws as laws

DETECTORS = [i for i in exported_instruments() if isinstance(i, Detector)]
NAMED = {"KNN", "Mahalanobis", "NAC", "PaDiM", "PatchCore", "RelativeMahalanobis", "ViM"}
DIM = 5


def rows(n, seed):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.truth("the score of a fit on that unit alone")
def test_what_units_lack_in_coverage_adds_to_the_score():
    x, grad, new = rows(400, 0), rows(400, 1), rows(30, 2)
    scorer = NAC(n_bins=10, alpha=0.3).fit(x, grad=grad)
    found = scorer.contributions(new, grad[:30])
    torch.testing.assert_close(found.sum(1), scorer.score(new, grad[:30]))
    for j in range(DIM):
        alone = NAC(n_bins=10, alpha=0.3).fit(x[:, [j]], grad=grad[:, [j]])
        want = alone.score(new[:, [j]], grad[:30, [j]]) / DIM
        torch.testing.assert_close(found[:, j], want)


@pytest.mark.truth("the nearest row of the bank, by all distances")
def test_gaps_to_the_nearest_patch_add_to_the_squared_score():
    x, new = rows(60, 0), rows(9, 1)
    scorer = PatchCore(m=64, window=1).fit(x)
    found = scorer.contributions(new)
    near = torch.cdist(new, x).argmin(1)
    torch.testing.assert_close(found.double(), (new - x[near]).square(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(1), scorer.score(new).square(), rtol=1e-4, atol=1e-6)


@pytest.mark.truth("the projection on the directions of least energy, from numpy-free algebra")
def test_the_residual_of_each_unit_adds_to_its_squared_length():
    x, new = rows(200, 0) * torch.arange(1, DIM + 1), rows(9, 1)
    weight = torch.eye(2, DIM).double()
    scorer = ViM(principal=2).fit(
        x, logits=x @ weight.T + 3, head=(weight, torch.zeros(2).double())
    )
    logits = new @ weight.T
    found = scorer.contributions(new, logits)
    length = (scorer.score(new, logits) + torch.logsumexp(logits, 1)) / scorer.alpha
    torch.testing.assert_close(found.sum(1), length.square(), rtol=1e-5, atol=1e-8)
    directions = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors[:, : DIM - 2]
    want = (new @ directions @ directions.T).square()
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def without(j):
    return [k for k in range(DIM) if k != j]


@pytest.mark.truth("the distance from a fit without that unit")
def test_a_place_says_what_its_distance_loses_without_a_coordinate():
    x, new = rows(300, 0), rows(8, 1)
    place = torch.arange(300) % 2
    names = [str(i // 2) for i in range(300)]
    fit = {"position": place, "ids": names}
    scorer = PaDiM(shrinkage=0.0).fit(x, **fit)
    found = scorer.contributions(new, place[:8])
    for j in range(DIM):
        rest = PaDiM(shrinkage=0.0).fit(x[:, without(j)], **fit)
        less = rest.score(new[:, without(j)], place[:8]).square()
        want = scorer.score(new, place[:8]).square() - less
        torch.testing.assert_close(found[:, j].double(), want.double(), rtol=1e-3, atol=1e-4)
    few = PaDiM(coordinates=2).fit(x, **fit)
    assert int((few.contributions(new, place[:8]) > 0).any(0).sum()) == 2


@pytest.mark.truth("the difference from a fit without that unit")
def test_the_difference_of_two_distances_falls_by_what_is_said():
    label = torch.arange(300) % 2
    x, new = rows(300, 0) + 20 * label[:, None], rows(8, 1)
    scorer = RelativeMahalanobis(shrinkage=0.0).fit(x, label)
    found = scorer.contributions(new)
    for j in range(DIM):
        rest = RelativeMahalanobis(shrinkage=0.0).fit(x[:, without(j)], label)
        want = (scorer.score(new) - rest.score(new[:, without(j)])).clamp(min=0.0)
        torch.testing.assert_close(found[:, j], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: repr(d).replace(" ", ""))
def test_who_can_tell_names_the_unit_that_was_planted(detector):
    inputs = laws.make_inputs(240)
    scorer = laws.fit(detector, inputs)
    assert isinstance(scorer, Scorer)
    few = laws.pick(inputs, torch.arange(12))
    few["x"][3, 2] += 300.0
    if "grad" in parameter_names(type(scorer).score):
        few["grad"][3, 2] = 50.0
    columns = [
        laws.rows_at(detector, few[name]) if name == "x" else few[name]
        for name in parameter_names(type(scorer).contributions)
        if name in few
    ]
    found = scorer.contributions(*columns) if columns else scorer.contributions()
    assert (found is not None) == (type(detector).__name__ in NAMED)
    if found is None:
        return
    assert found.shape == few["x"].shape
    assert bool((found >= 0).all())
    if type(detector).__name__ not in (
        "KNN",
        "NAC",
        "ViM",
    ):  # directions; few bins; no energy there
        assert int(found[3].argmax()) == 2
