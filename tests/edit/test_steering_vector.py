import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

import sonde
from sonde.core import EditContext, InputError, Site
from sonde.edit import SteeringVector
from sonde.edit.steering_vector import PairDifferences

SITE = Site("0")
LABEL = torch.arange(60) % 2


def rows(shift=2.0, n=60, dim=5, seed=0):
    """Rows whose second class is moved along the first axis; pairs share most of what varies."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n // 2, dim, generator=generator, dtype=torch.float64)
    x = 3 * shared.repeat_interleave(2, 0)
    x += torch.randn(n, dim, generator=generator, dtype=torch.float64)
    x[1::2, 0] += shift
    return x


def same_axis(a, b):
    return torch.testing.assert_close(abs(a @ b) / a.norm() / b.norm(), a.new_tensor(1.0))


@pytest.mark.truth("the difference of means and the projections of all rows in memory")
def test_difference_of_means_and_its_spread():
    x = rows()
    found = SteeringVector().fit(x, LABEL)
    gap = x[LABEL == 1].mean(0) - x[LABEL == 0].mean(0)
    torch.testing.assert_close(found.vector, gap / gap.norm())
    assert found.spread == pytest.approx(float((x @ found.vector).std(correction=0)))
    assert found.value == pytest.approx(float(gap.norm()) / found.spread)
    narrow = SteeringVector(scatter="diag").fit(x, LABEL)
    torch.testing.assert_close(narrow.vector, found.vector)
    assert narrow.spread == pytest.approx(float((x.var(0, correction=0) @ found.vector**2) ** 0.5))


@pytest.mark.truth("the closed form of a linear read-out: strength * spread * (read-out . vector)")
def test_a_linear_read_out_moves_by_strength_times_projection():
    x, read_out = rows(), nn.Linear(5, 1, dtype=torch.float64)
    found = SteeringVector().fit(x, LABEL)
    net = nn.Sequential(nn.Identity(), read_out)
    before = net(x)
    for strength in (-3.0, 0.5, 4.0):
        with sonde.editing(net, found.edit(strength), "0"):
            moved = net(x) - before
        want = strength * found.spread * (read_out.weight @ found.vector)
        torch.testing.assert_close(moved, want.expand_as(moved))
        there = found.edit(strength).apply(x, SITE, EditContext())
        back = found.edit(-strength).apply(there, SITE, EditContext())
        torch.testing.assert_close(back, x)


@pytest.mark.truth("singular vectors of all differences, written out")
def test_principal_axis_of_all_differences():
    x = rows()
    x[LABEL == 1] *= 1.5  # so that the two covariances differ
    label = LABEL.clone()
    label[:20:2] = 2  # the other side is made of two classes
    found = SteeringVector(how="pca_difference").fit(x, label)
    gaps = (x[label == 1][:, None] - x[label != 1][None]).reshape(-1, 5)
    same_axis(found.vector, torch.linalg.svd(gaps).Vh[0])
    assert float(found.vector @ gaps.mean(0)) > 0


@pytest.mark.truth("singular vectors of the differences of pairs, and of rows less their midpoint")
def test_pairs_cancel_what_they_share():
    x, pair = rows(shift=1.5), torch.arange(60) // 2
    method = SteeringVector(how="pca_difference", paired=True)
    found = method.fit(x, pair=pair, side=LABEL)
    gap = x[1::2] - x[::2]
    same_axis(found.vector, torch.linalg.svd(gap).Vh[0])
    centred = x - ((x[1::2] + x[::2]) / 2).repeat_interleave(2, 0)
    same_axis(found.vector, torch.linalg.svd(centred).Vh[0])
    planted, loose = abs(float(found.vector[0])), SteeringVector(how="pca_difference")
    assert planted > 0.8 > abs(float(loose.fit(x, LABEL).vector[0]))
    widowed = x[:-1]  # the last pair has lost a member
    short = method.fit(widowed, pair=pair[:-1], side=LABEL[:-1])
    sums = PairDifferences(1)
    parts = (sums.observe(x[i], pair[i], LABEL[i]) for i in (slice(0, 14), slice(14, 60)))
    merged = sums.merge(*parts)
    assert merged.n == 30
    torch.testing.assert_close(merged.total, gap.sum(0))
    torch.testing.assert_close(merged.second, gap.T @ gap)
    same_axis(short.vector, torch.linalg.svd(gap[:-1]).Vh[0])


def test_uncentred_differences_find_a_shift_that_centring_takes_away():
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[1::2, 0] += 4.0
    method = SteeringVector(how="pca_difference", paired=True)
    found = method.fit(x, pair=torch.arange(512) // 2, side=torch.arange(512) % 2)
    gap = x[1::2] - x[::2]
    centred = torch.linalg.svd(gap - gap.mean(0)).Vh[0]
    assert float(found.vector[0]) > 0.85 > 0.5 > abs(float(centred[0]))


@pytest.mark.parametrize("how", ["mean_difference", "pca_difference", "probe"])
def test_turning_the_data_round_turns_the_vector(how):
    x, method = rows(), SteeringVector(how=how)
    found, turned = method.fit(x, LABEL), method.fit(-x, LABEL)
    torch.testing.assert_close(found.vector, -turned.vector)
    other = SteeringVector(how=how, positive=0).fit(x, LABEL)
    torch.testing.assert_close(found.vector, -other.vector)


@pytest.mark.truth("sklearn LinearDiscriminantAnalysis")
def test_probe_is_the_normal_of_discriminant_analysis():
    x = rows()
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), LABEL.numpy())
    found = SteeringVector(how="probe", shrinkage=0.0).fit(x, LABEL)
    want = lda.coef_[0] / np.linalg.norm(lda.coef_[0])
    np.testing.assert_allclose(found.vector.numpy(), want, rtol=1e-9)


def test_errors_and_flags():
    x = rows()
    with pytest.raises(InputError, match="SteeringVector: expected rows of class 1 and of another"):
        SteeringVector().fit(x, torch.zeros(60, dtype=torch.int64))
    with pytest.raises(InputError, match="expected pairs with one row on side 1"):
        SteeringVector(how="pca_difference", paired=True).fit(x, pair=LABEL, side=LABEL * 0)
    with pytest.raises(InputError, match="expected paired with how='pca_difference'"):
        SteeringVector(paired=True)
    same = SteeringVector().fit(torch.ones(60, 3), LABEL)
    assert "dead" in same.flags
    with pytest.raises(InputError, match=r"SteeringDirection.edit: expected a direction"):
        same.edit()
