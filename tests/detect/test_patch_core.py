import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from sonde.core import Stream
from sonde.core.errors import InputError, ShapeError
from sonde.detect import PatchCore
from sonde.run.fitting.fit import fit
from sonde.run.fitting.merge import merge
from sonde.run.scoring.score import score


def _normal(n, dim, seed):
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.normal(size=(n, dim)))


@pytest.mark.truth("scipy.spatial.distance.cdist to all fitted rows")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distance_to_the_nearest_row_while_all_are_kept(dtype):
    x, new = _normal(200, 6, 0) + 100, _normal(40, 6, 1) + 100
    found = PatchCore().fit(x.to(dtype)).score(new.to(dtype))
    want = cdist(new.to(dtype), x.to(dtype)).min(1)
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.truth("scipy.spatial.distance.cdist to all fitted rows")
def test_a_coreset_costs_at_most_its_radius():
    x, new = _normal(3000, 4, 0), _normal(500, 4, 1) * 2
    scorer = PatchCore(m=80).fit(x)
    full = torch.as_tensor(cdist(new, x).min(1))
    excess = scorer.score(new) - full
    assert float(excess.min()) >= -1e-9
    assert float(excess.max()) <= scorer.radius + 1e-9
    assert scorer.flags == ("sampled", "rough_merge")
    assert np.corrcoef(scorer.score(new), full)[0, 1] > 0.9


@pytest.mark.truth("scipy.spatial.distance.cdist in double precision")
@pytest.mark.parametrize("apart", [1e3, 1e4])
def test_near_rows_keep_their_digits_beside_a_far_mode(apart):
    x, new = _normal(1000, 16, 0), _normal(200, 16, 1)
    x[:500] += apart
    x, new = x.float(), new.float()
    scorer = PatchCore().fit(x)
    want = cdist(new.double(), x.double()).min(1)
    np.testing.assert_allclose(scorer.score(new).numpy(), want, rtol=1e-5)
    assert float(scorer.score(x).max()) == 0.0


@pytest.mark.truth("the formula of the paper in numpy, one image at a time")
def test_score_of_an_image_is_weighed():
    x, new = _normal(150, 3, 0), _normal(30, 3, 1) * 2
    scorer = PatchCore(b=5).fit(x)
    example = torch.arange(30) // 6
    found = scorer.reduced(scorer.score(new), example, "max", new)
    bank = scorer.bank.numpy()
    for i in range(5):
        patches = new[example == i].numpy()
        far = cdist(patches, bank)
        worst = far.min(1).argmax()
        nearest = far[worst].argmin()
        around = cdist(bank[nearest][None], bank)[0].argsort()[:5]
        weight = 1 - np.exp(far[worst].min()) / np.exp(far[worst][around]).sum()
        assert float(found.score[i]) == pytest.approx(weight * far[worst].min())
        assert int(found.row[i]) == 6 * i + worst
    mean = scorer.reduced(scorer.score(new), example, "mean", new)
    assert float(mean.score[0]) == pytest.approx(float(scorer.score(new[:6]).mean()))


@pytest.mark.truth("1 - 1/9, by hand")
def test_equal_distances_to_nine_neighbours_weigh_eight_ninths():
    bank = 1e-9 * torch.eye(9, dtype=torch.float64)
    scorer = PatchCore().fit(bank)
    far = torch.full((1, 9), 2.0, dtype=torch.float64)
    assert float(scorer.weight(far)) == pytest.approx(8 / 9, abs=1e-8)
    lone = PatchCore(b=1).fit(bank)
    plain = lone.reduced(lone.score(far), torch.zeros(1, dtype=torch.int64), "max", far)
    assert float(plain.score) == pytest.approx(6.0, abs=1e-8)


def test_large_distances_do_not_overflow():
    scorer = PatchCore(b=2).fit(torch.tensor([[0.0], [5000.0]], dtype=torch.float64))
    far = torch.tensor([[-3000.0], [torch.inf]], dtype=torch.float64)
    found = scorer.reduced(scorer.score(far), torch.arange(2), "max", far)
    assert found.score.tolist() == [3000.0, torch.inf]


def test_rotations_change_nothing():
    x, new = _normal(300, 5, 0), _normal(50, 5, 1)
    turn = torch.linalg.qr(_normal(5, 5, 2)).Q
    ids = [str(i) for i in range(300)]
    a, b = (PatchCore(m=40).fit(rows, ids=ids) for rows in (x, x @ turn))
    torch.testing.assert_close(b.score(new @ turn), a.score(new), rtol=1e-9, atol=1e-9)


@pytest.mark.truth("scores of images by hand from the same scorer")
@pytest.mark.truth("both distances lie between that to all rows and that plus the radius")
def test_merged_banks_differ_by_at_most_the_larger_radius():
    random = np.random.default_rng(0)
    x, new = random.standard_normal((300, 3)), random.standard_normal((80, 3))
    parts = [
        fit(PatchCore(m=24, b=1), Stream.of(x[at], ids=range(300)[at]), calibrate=0, progress=False)
        for at in (slice(0, 110), slice(110, 300), slice(0, 300))
    ]
    both, whole = merge(*parts[:2]).result("patch_core"), parts[2].result("patch_core")
    one, other = (found.score(torch.tensor(new)) for found in (whole, both))
    assert 0 < float((one - other).abs().max()) <= max(whole.radius, both.radius)
    for found in (whole, both):
        assert "rough_merge" in found.flags
    assert "rough_merge" not in PatchCore(m=400).fit(x).flags


def test_images_are_calibrated_by_their_weighed_score():
    x = _normal(60 * 4, 3, 0)
    ids, position = torch.arange(60).repeat_interleave(4), torch.arange(4).repeat(60)
    stream = Stream.of(x, ids=ids.tolist(), position=position)
    fitted = fit(PatchCore(m=64), stream, reduction="max", progress=False)
    new = _normal(8, 3, 5) * 3
    table = score(
        fitted, Stream.of(new, ids=[0] * 4 + [1] * 4, position=position[:8]), progress=False
    )
    scorer = fitted.result("patch_core").scorer
    want = scorer.reduced(scorer.score(new), torch.arange(8) // 4, "max", new)
    assert sorted(table["score"].to_pylist()) == pytest.approx(sorted(want.score.tolist()))
    assert max(want.score) < max(scorer.score(new))
    assert table["p"].null_count == 0


def test_refuses_wrong_parameters_and_widths():
    with pytest.raises(InputError, match="1 <= b <= m, got b=9 and m=4"):
        PatchCore(m=4)
    with pytest.raises(InputError, match="window 1 or 3, got 2"):
        PatchCore(window=2)
    with pytest.raises(ShapeError, match="expected dim=3"):
        PatchCore().fit(_normal(20, 3, 0)).score(_normal(2, 4, 0))
    assert PatchCore().fit(_normal(4, 3, 0)).flags == ("few_rows",)


@pytest.mark.truth("the same rows in float64")
def test_a_bank_beside_a_massive_unit_is_chosen_as_in_float64():
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    x[:, 7] += 200_000.0 * (torch.arange(400) % 2)
    found, want = (PatchCore(m=64).fit(rows) for rows in (x, x.double()))
    assert len(found.bank) == 64
    assert found.radius < 1.05 * want.radius
