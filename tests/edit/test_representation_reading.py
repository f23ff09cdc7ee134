import pytest
import torch
from sklearn.metrics import roc_auc_score

from sonde.core import EditContext, InputError, ShapeError, Site
from sonde.edit import Amplify, ContrastVector, RepresentationReading
from sonde.edit._directions import Direction
from sonde.testing import check

SITE, NOTHING = Site("0"), EditContext()


def planted(n=300, dim=8, shift=3.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64) + 5.0
    label = torch.arange(n) % 2
    x[label == 1, 2] += shift
    return x, label


@pytest.mark.truth("singular vectors of the differences of all rows with all others")
def test_scores_are_standardised_projections_on_the_axis_of_all_differences():
    x, label = planted()
    scorer = RepresentationReading().fit(x, label)
    gaps = (x[label == 1][:, None] - x[label == 0][None]).reshape(-1, x.shape[1])
    axis = torch.linalg.svd(gaps, full_matrices=False).Vh[0]
    axis = axis * (axis @ gaps.mean(0)).sign()
    along = (x - x.mean(0)) @ axis
    torch.testing.assert_close(scorer.score(x), along / along.std(correction=0))
    assert roc_auc_score(label, scorer.score(x)) > 0.95
    apart = along[label == 1].mean() - along[label == 0].mean()
    assert float(scorer) == pytest.approx(float(apart / along.std(correction=0)))


@pytest.mark.truth("the rule of signs in the docstring")
def test_an_axis_along_which_both_means_agree_turns_to_its_largest_entry():
    axis = torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)
    apart, cov = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64), torch.eye(3).double()
    for sign in (1, -1):
        same = Direction.along(sign * axis, torch.zeros(3).double(), cov)
        torch.testing.assert_close(same.unit, -axis / 14**0.5)
        ahead = Direction.along(sign * axis, apart, cov)
        torch.testing.assert_close(ahead.unit, axis / 14**0.5)
        assert ahead.gap == pytest.approx(10 / 14**0.5)


def test_a_push_to_either_side_starts_from_the_mean_row():
    x, label = planted()
    scorer = RepresentationReading().fit(x, label)
    before = scorer.score(x)
    added = scorer.score(scorer.edit(2.0).apply(x, SITE, NOTHING))
    torch.testing.assert_close(added, before + 2.0)
    pushed = scorer.score(scorer.edit(2.0, piecewise=True).apply(x, SITE, NOTHING))
    torch.testing.assert_close(pushed, before + 2.0 * before.sign())
    assert bool((before < 0).any() and (before > 0).any())


def test_two_other_runs_in_place_of_a_direction():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    others = {"positive": 3 * x, "negative": x}
    edit = ContrastVector(strength=0.5)
    torch.testing.assert_close(edit.apply(x, SITE, EditContext(others=others)), 2 * x)
    with pytest.raises(InputError, match=r"states of the run 'positive' at 0:out, got none"):
        edit.apply(x, SITE, NOTHING)
    with pytest.raises(ShapeError, match="aligned position by position"):
        edit.apply(x, SITE, EditContext(others={**others, "negative": x[:1]}))


def test_laws():
    check(Amplify(**Amplify.examples[0]))


def test_errors_and_flags():
    x, label = planted()
    with pytest.raises(InputError, match="rows of class 5 and of another class"):
        RepresentationReading(positive=5).fit(x, label)
    with pytest.raises(ShapeError, match="expected dim=8"):
        RepresentationReading().fit(x, label).score(x[:, :3])
    same = RepresentationReading().fit(torch.ones(6, 2), [0, 1] * 3)
    assert "dead" in same.flags
    with pytest.raises(InputError, match="expected a direction"):
        same.edit()
