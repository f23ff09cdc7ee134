import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.covariance import OAS

from sonde.core.errors import InputError, ShapeError, StateError
from sonde.detect import Mahalanobis, RelativeMahalanobis

SQUARE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
TWO = torch.cat([SQUARE, SQUARE + torch.tensor([10.0, 0.0])])
LABEL = [0] * 4 + [1] * 4
QUERY = torch.tensor([[3.0, 1.0], [6.0, 0.0], [1.0, 0.0]], dtype=torch.float64)


def _data(seed=0, n=400, dim=8, classes=3):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    mix = rng.standard_normal((dim, dim)) + np.eye(dim)
    x = rng.standard_normal((n, dim)) @ mix + 4.0 * rng.standard_normal((classes, dim))[label]
    return torch.from_numpy(x), label


@pytest.mark.truth("worked out by hand")
def test_known_values():
    scorer = Mahalanobis(shrinkage=0.0).fit(TWO, LABEL)
    assert scorer.score(QUERY).tolist() == pytest.approx([10.0, 50.0, 0.0])
    relative = RelativeMahalanobis(shrinkage=0.0).fit(TWO, LABEL)
    want = [7.64705882, 50.0, -0.98039216]
    assert relative.score(QUERY).tolist() == pytest.approx(want, rel=1e-8)


@pytest.mark.truth("numpy over all rows in memory, sklearn's OAS")
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, "oas"])
def test_formula(shrinkage):
    x, label = _data()
    means = np.stack([x[label == k].numpy().mean(0) for k in range(3)])
    z = x.numpy() - means[label]
    within, scale = z.T @ z / len(x), np.trace(z.T @ z / len(x)) / 8
    weight = OAS(assume_centered=True).fit(z).shrinkage_ if shrinkage == "oas" else shrinkage
    inverse = np.linalg.inv((1 - weight) * within + weight * scale * np.eye(8))
    gaps = x.numpy()[:, None] - means[None]
    want = np.einsum("nkd,de,nke->nk", gaps, inverse, gaps).min(1)
    scorer = Mahalanobis(shrinkage=shrinkage).fit(x, label)
    np.testing.assert_allclose(scorer.score(x), want, rtol=1e-9)
    assert scorer.shrinkage == pytest.approx(weight, rel=1e-9)
    np.testing.assert_allclose(scorer.score(x.float()), want, rtol=1e-3, atol=1e-3)


@pytest.mark.truth("chi-squared distribution")
def test_fresh_rows_are_chi_squared():
    rng = np.random.default_rng(1)
    scorer = Mahalanobis().fit(rng.standard_normal((20000, 8)))
    scores = scorer.score(torch.from_numpy(rng.standard_normal((20000, 8))))
    assert chi2.ppf(0.95, 8) == pytest.approx(15.50731306)
    assert float((scores > 15.50731306).double().mean()) == pytest.approx(0.05, abs=0.006)


def test_unchanged_by_invertible_maps():
    x, label = _data(2)
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(8, 8, generator=rng, dtype=torch.float64)
    for method in (Mahalanobis, RelativeMahalanobis):
        want = method(shrinkage=0.0).fit(x, label).score(x)
        got = method(shrinkage=0.0).fit(x @ a + 5.0, label).score(x @ a + 5.0)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_without_labels_there_is_one_cloud():
    x, label = _data(3)
    torch.testing.assert_close(
        Mahalanobis().fit(x).score(x), Mahalanobis(classes=False).fit(x, label).score(x)
    )
    partly = label.copy()
    partly[::2] = -1
    scorer = Mahalanobis().fit(x, partly)
    assert scorer.flags == ("unlabelled",)
    torch.testing.assert_close(scorer.score(x), Mahalanobis().fit(x[1::2], label[1::2]).score(x))


@pytest.mark.truth("a fit without labels on the rows of the class")
def test_rows_without_a_label_are_left_out_beside_a_single_class():
    x, label = _data(3)
    scorer = Mahalanobis().fit(x, np.where(label == 2, 2, -1))
    assert (scorer.flags, scorer.labels.tolist()) == (("unlabelled",), [2])
    torch.testing.assert_close(scorer.score(x), Mahalanobis().fit(x[label == 2]).score(x))


@pytest.mark.truth("the squared length of centred rows times the root")
def test_mean_and_root_of_one_cloud_give_its_distance():
    x, label = _data(3)
    scorer = Mahalanobis(shrinkage=0.1).fit(x)
    assert scorer.squared_distance is not None
    mean, root = scorer.squared_distance
    torch.testing.assert_close(((x - mean) @ root).square().sum(1), scorer.score(x))
    assert Mahalanobis().fit(x, label).squared_distance is None


def test_a_large_mean_costs_no_digits():
    x, label = _data(4)
    want = Mahalanobis().fit(x, label).score(x)
    far = (x + 1e4).float()
    got = Mahalanobis().fit(far, label).score(far)
    torch.testing.assert_close(got.double(), want, rtol=0.01, atol=0.05)


def test_directions_without_variance_are_reported_not_divided_by():
    x, label = _data(5)
    x = torch.cat([x, x[:, :1]], dim=1)
    scorer = Mahalanobis(shrinkage=0.0).fit(x, label)
    assert scorer.rank == 8
    assert "rank_deficient" in scorer.flags
    off = x[:1].clone()
    off[0, 0] += 100.0
    off[0, 8] -= 100.0
    assert float(scorer.null_energy(off)) > 0.9
    assert float(scorer.null_energy(x[:1])) == pytest.approx(0.0, abs=1e-9)
    assert bool(torch.isfinite(scorer.score(off)).all())


@pytest.mark.parametrize("scatter", ["full", "diag"])
@pytest.mark.parametrize("method", [Mahalanobis, RelativeMahalanobis])
def test_a_row_where_fitted_rows_never_vary_stands_out(method, scatter):
    x, label = _data(5)
    still = torch.full_like(x[:, :1], 3.0)
    x = torch.cat([x, x[:, :1], still], dim=1).float()
    scorer = method(shrinkage=0.0, scatter=scatter).fit(x, label)
    usual = scorer.score(x)
    broken = {"dead unit that speaks": (9, 3.1)}
    if scatter == "full":
        broken["copy that does not follow"] = (8, 0.5)
    for unit, value in broken.values():
        rows = x.clone()
        rows[:, unit] = value
        assert float(scorer.score(rows).min()) > 1e3 * float(usual.abs().max())
    assert float(usual.abs().max()) < 1e3


@pytest.mark.truth("the same rows scored in float64")
@pytest.mark.parametrize("method", [Mahalanobis, RelativeMahalanobis])
def test_float32_rows_keep_their_digits(method):
    x, label = _data(9)
    rng = torch.Generator().manual_seed(1)
    near = x[:, :1] + 1e-3 * torch.randn(len(x), 1, generator=rng, dtype=torch.float64)
    rows = torch.cat([x[:, :6], near, x[:, 6:] + 1e4], dim=1).float()
    scorer = method(shrinkage=0.0).fit(rows, label)
    got, want = scorer.score(rows).double(), scorer.score(rows.double())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.std()))


@pytest.mark.truth("variances of each unit over all rows in memory")
def test_diagonal():
    x, _ = _data(6)
    scorer = Mahalanobis(shrinkage=0.0, scatter="diag").fit(x)
    z = x - x.mean(0)
    torch.testing.assert_close(scorer.score(x), (z.square() / z.square().mean(0)).sum(1))


@pytest.mark.truth("mean of the scores of the fitted rows to their own class")
def test_value_is_the_mean_score_of_the_fitted_rows():
    x, _ = _data(7)
    scorer = Mahalanobis().fit(x)
    assert scorer.value == pytest.approx(float(scorer.score(x).mean()), rel=1e-9)


def test_errors_say_what_to_do():
    x, label = _data(8)
    with pytest.raises(ShapeError, match=r"Mahalanobis.score: expected dim=8 \(as fitted\), got"):
        Mahalanobis().fit(x, label).score(x[:, :5])
    with pytest.raises(StateError, match="Mahalanobis: expected at least 2 rows"):
        Mahalanobis().fit(x[:1])
    assert Mahalanobis().fit(x[:2]).flags == ("few_rows",)
    with pytest.raises(InputError, match="RelativeMahalanobis: expected labels"):
        RelativeMahalanobis().fit(x)
    with pytest.raises(InputError, match="Mahalanobis: expected shrinkage"):
        Mahalanobis(shrinkage=2.0)


@pytest.mark.truth("the same rows scored in float64")
@pytest.mark.parametrize("gap", [1e3, 1e4])
def test_distances_to_classes_far_apart_keep_their_digits(gap):
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(500) % 10
    x = gap * torch.randn(10, 16, generator=draw)[label] + torch.randn(500, 16, generator=draw)
    found = Mahalanobis().fit(x, label).score(x)
    exact = Mahalanobis().fit(x.double(), label).score(x.double())
    assert torch.allclose(found.double(), exact, rtol=1e-6 * gap, atol=0.0)
