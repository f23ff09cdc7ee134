import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from sonde.core.errors import InputError, ShapeError, StateError
from sonde.detect import PaDiM
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score


def _images(n, places=4, dim=5, seed=0):
    """Patches of images; each place has a mean and a covariance of its own."""
    mixing = torch.randn(places, dim, dim, generator=torch.Generator().manual_seed(99)).double()
    noise = torch.randn(
        n, places, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    x = torch.einsum("npd,pde->npe", noise, mixing) + 10 * torch.arange(places)[None, :, None]
    position = torch.arange(places).repeat(n)
    return x.reshape(-1, dim), position, torch.arange(n).repeat_interleave(places).tolist()


def _fit(detector, x, position, ids):
    return detector.fit(x, position=position, ids=ids)


@pytest.mark.truth("sklearn.covariance.OAS at each position, numpy.linalg.inv")
def test_distance_at_each_position():
    x, position, ids = _images(30)
    scorer = _fit(PaDiM(), x, position, ids)
    new, where, _ = _images(7, seed=1)
    want = np.empty(len(new))
    for p in range(4):
        oas = OAS().fit(x[position == p].numpy())
        centred = new[where == p].numpy() - oas.location_
        want[where == p] = np.sqrt(((centred @ np.asarray(oas.precision_)) * centred).sum(1))
        assert float(scorer.shrinkage[p]) == pytest.approx(oas.shrinkage_)
    np.testing.assert_allclose(scorer.score(new, where).numpy(), want, rtol=1e-8)


def test_a_patch_that_is_usual_elsewhere_is_found():
    x, position, ids = _images(60)
    scorer = _fit(PaDiM(), x, position, ids)
    new, where, _ = _images(20, seed=1)
    usual = scorer.score(new, where)
    moved = scorer.score(new, (where + 1) % 4)
    assert float(moved.min()) > float(usual.max())


def test_an_affine_map_changes_nothing():
    x, position, ids = _images(40)
    change = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    plain = _fit(PaDiM(shrinkage=0.0), x, position, ids)
    mapped = _fit(PaDiM(shrinkage=0.0), x @ change + 3, position, ids)
    new, where, _ = _images(10, seed=1)
    a, b = plain.score(new, where), mapped.score(new @ change + 3, where)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("the mean variance of the other positions, by hand")
def test_a_place_without_variance_does_not_hide_a_defect():
    x, position, ids = _images(30)
    x[position == 2] = 7.0
    scorer = _fit(PaDiM(shrinkage=0.0), x, position, ids)
    assert "dead" in scorer.flags
    row = torch.full((1, 5), 7.0, dtype=torch.float64)
    row[0, 0] = 9.0
    at = torch.tensor([2])
    variance = torch.stack([x[position == p].var(0, correction=0).mean() for p in range(4)]).mean()
    assert float(scorer.score(row, at)) == pytest.approx(2 / float(variance) ** 0.5)
    assert float(scorer.score(torch.full_like(row, 7.0), at)) == 0.0


def test_images_that_never_vary_leave_no_direction_to_measure():
    _, position, ids = _images(5)
    scorer = _fit(PaDiM(), torch.full((20, 5), 7.0), position, ids)
    assert "dead" in scorer.flags
    assert scorer.score(torch.full((4, 5), 8.0), torch.arange(4)).tolist() == [0.0] * 4


def test_few_coordinates_are_flagged_and_seeded():
    x, position, ids = _images(30)
    a, b = (_fit(PaDiM(coordinates=2, seed=s), x, position, ids) for s in (0, 5))
    assert a.coordinates.tolist() != b.coordinates.tolist()
    assert a.flags == ()
    assert _fit(PaDiM(), *_images(5)[:2], _images(5)[2]).flags == ("few_rows",)


def test_refuses_images_of_another_size():
    x, position, ids = _images(30)
    scorer = _fit(PaDiM(), x, position, ids)
    with pytest.raises(InputError, match=r"positions in \[0, 4\) \(as fitted\), got 0 to 8"):
        scorer.score(x[:9], torch.arange(9))
    with pytest.raises(ShapeError, match="expected dim=5"):
        scorer.score(x[:4, :3], position[:4])
    larger, places, _ = _images(1, places=9)
    mixed = torch.cat([x, larger]), torch.cat([position, places]), [*ids, *["big"] * 9]
    with pytest.raises(StateError, match="at least 2 images at each of 9 positions, got 1 at pos"):
        _fit(PaDiM(), *mixed)
    with pytest.raises(InputError, match="shrinkage"):
        PaDiM(shrinkage=2.0)
    with pytest.raises(InputError, match="at least 1"):
        PaDiM(coordinates=0)


@pytest.mark.parametrize("side", [4, 16])
def test_images_of_another_size_are_refused_where_they_are_read(side):
    net = torch.nn.Conv2d(1, 3, 2, 2).eval()
    draw = torch.Generator().manual_seed(0)
    usual = [torch.randn(1, 8, 8, generator=draw) for _ in range(20)]
    fitted = fit(PaDiM(), read(net, usual, reducer="patches"), progress=False)
    assert score(fitted, net, usual, progress=False).num_rows == 20
    other = [torch.randn(1, side, side, generator=draw) for _ in range(20)]
    refused = rf"expected 16 patches of every image \(as fitted\), got {side**2 // 4} of"
    with pytest.raises(InputError, match=refused):
        score(fitted, net, other, progress=False)
    with pytest.raises(InputError, match=refused):
        score(fitted, net, other, reduction="rows", progress=False)
    with pytest.raises(InputError, match=refused):
        calibrate(fitted, net, other, progress=False)
