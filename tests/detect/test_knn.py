import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from sonde.core.errors import InputError, ShapeError
from sonde.detect import KNN


def _rows(seed=0, n=500, dim=8):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


@pytest.mark.truth("sklearn.neighbors.NearestNeighbors")
@pytest.mark.parametrize("k", [1, 7, 50])
def test_matches_sklearn(k):
    x, y = _rows(0), _rows(1, 60) * 3.0
    unit = [(v / v.norm(dim=1, keepdim=True)).numpy() for v in (x, y)]
    want = NearestNeighbors(n_neighbors=k).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    np.testing.assert_allclose(KNN(k=k).fit(x).score(y), want, rtol=1e-9)
    np.testing.assert_allclose(KNN(k=k).fit(x.float()).score(y.float()), want, rtol=1e-4)


def test_more_neighbours_than_half_of_a_class_are_flagged():
    """With 50 rows in each of ten classes, the 60th neighbour is of another class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 20, generator=generator)

    def of_classes(n):
        own = centres[torch.arange(n) % 10]
        return own + 0.3 * torch.randn(n, 20, generator=generator)

    between = torch.rand(300, 10, generator=generator)
    odd = between / between.sum(1, keepdim=True) @ centres
    odd += 0.3 * torch.randn(300, 20, generator=generator)
    x, usual = of_classes(500), of_classes(300)
    for k, flags, low, high in ((25, (), 0.99, 1.0), (60, ("many_neighbours",), 0.0, 0.5)):
        scorer = KNN(k=k).fit(x)
        assert scorer.flags == flags
        area = (scorer.score(odd)[:, None] > scorer.score(usual)).double().mean()
        assert low <= float(area) <= high


def test_a_fitted_row_is_at_distance_zero_from_itself():
    x = _rows().float()
    assert float(KNN(k=1).fit(x).score(x).max()) == 0.0


def _unlike(kind):
    """Return float32 rows of which unit rows differ in their last digits only."""
    x = _rows(6, 700, 64).float()
    if kind == "massive unit":
        x[:, 7] += 10_000
    elif kind == "two massive signs":
        x[:, 7] += 10_000 * (torch.arange(len(x)) % 2 * 2 - 1)
    elif kind == "large offset":
        x += 100_000
    else:
        x = _rows(7, 700, 1).float().abs() * torch.ones(64) + 1e-4 * x
    return x


@pytest.mark.truth("scipy.spatial.distance.cdist of unit rows in float64")
@pytest.mark.parametrize(
    "kind", ["massive unit", "two massive signs", "large offset", "collinear rows"]
)
def test_keeps_the_digits_in_which_rows_differ(kind):
    x = _unlike(kind)
    fitted, fresh = x[:600], x[500:]
    unit = [v.double() / v.double().norm(dim=1, keepdim=True) for v in (fresh, fitted)]
    far = np.sort(cdist(unit[0].numpy(), unit[1].numpy()), axis=1)
    scorer = KNN(k=5).fit(fitted)
    np.testing.assert_allclose(scorer.score(fresh), far[:, 4], rtol=1e-5)
    added = scorer.contributions(fresh).sum(1).sqrt()
    np.testing.assert_allclose(added, far[:, 4], rtol=1e-5)
    assert float(KNN(k=1).fit(fitted).score(fresh[:100]).max()) < 1e-5 * float(far[:, 4].min())


def test_a_row_of_zeros_is_at_distance_one_from_everything():
    assert KNN(k=3).fit(_rows()).score(torch.zeros(1, 8)).tolist() == pytest.approx([1.0])


def test_unchanged_by_rotation_and_length():
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    x, y = _rows(0), _rows(1, 40)
    want = KNN(k=5).fit(x).score(y)
    torch.testing.assert_close(KNN(k=5).fit(x @ q).score(y @ q * 7.0), want)


@pytest.mark.truth("the whole bank: order kept, distances larger")
def test_what_a_sample_costs():
    scale = torch.linspace(3.0, 0.3, 8, dtype=torch.float64)
    x, y = _rows(2, 8000) * scale, _rows(3, 300) * scale
    full, part = KNN(k=50).fit(x).score(y), KNN(k=50, m=800).fit(x).score(y)
    assert np.asarray(spearmanr(full, part))[0] > 0.85
    assert float((part / full).mean()) > 1.2


def test_the_bank_does_not_depend_on_the_order_of_rows():
    x = _rows(4, 700)
    perm = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    a = KNN(k=3, m=100).fit(x, ids=range(700))
    b = KNN(k=3, m=100).fit(x[perm], ids=perm.tolist())
    assert torch.equal(a.bank, b.bank)
    assert a.flags == ("sampled",)


def test_fewer_rows_than_k_takes_the_farthest_and_says_so():
    scorer = KNN(k=50).fit(_rows(5, 10))
    assert scorer.k == 10
    assert "few_rows" in scorer.flags


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="KNN: expected 1 <= k <= m, got k=5 and m=2"):
        KNN(k=5, m=2)
    with pytest.raises(ShapeError, match=r"KNN.score: expected dim=8 \(as fitted\), got dim=3"):
        KNN(k=1).fit(_rows()).score(torch.zeros(1, 3))


@pytest.mark.parametrize("scale", [1e-14, 1e-20, 1e-30, 1e-44])
def test_rows_too_short_to_square_stay_in_range(scale):
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    scores = KNN(k=3).fit(x * scale).score(x * scale)
    assert bool(((scores >= 0) & (scores <= 2)).all())
