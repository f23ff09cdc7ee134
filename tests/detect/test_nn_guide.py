import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from detect.head_rows import SMALL_HEAD, made
from sonde.core.errors import InputError, ShapeError, SondeWarning
from sonde.detect.nn_guide import NNGuide


def _fit(detector, rows):
    return detector.fit(rows.x, logits=rows.x @ rows.weight.T + rows.bias)


def _score(scorer, rows):
    return scorer.score(rows.fresh, rows.fresh @ rows.weight.T + rows.bias)


@pytest.mark.truth("worked out by hand")
def test_known_values():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    energies = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    halves = energies.repeat(1, 2) - np.log(2.0)
    padded = torch.cat([halves, torch.full((3, 1), -1e9, dtype=torch.float64)], 1)
    scorer = NNGuide(k=2).fit(x, logits=padded)
    row = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    logits = row @ SMALL_HEAD[0].T + SMALL_HEAD[1]
    assert scorer.score(row, logits).tolist() == pytest.approx([-4.24233799], rel=1e-8)


@pytest.mark.filterwarnings("ignore:NNGuide")
@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows")
def test_matches_a_peer():
    rows = made()
    want = [0.09364478, -20.21142197, -12.01567650, -3.56649947]
    assert _score(_fit(NNGuide(k=10), rows), rows).tolist() == pytest.approx(want, rel=1e-5)


@pytest.mark.truth("sklearn.neighbors.NearestNeighbors on products turned into distances")
@pytest.mark.parametrize("k", [1, 5, 300])
def test_brute_force(k):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 8)), rng.standard_normal((40, 8))
    f, g = rng.standard_normal((300, 4)) + 5.0, rng.standard_normal((40, 4))
    bank = x / np.linalg.norm(x, axis=1, keepdims=True) * np.log(np.exp(f).sum(1))[:, None]
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    # one more coordinate makes all bank rows equally long: the nearest has the largest product
    lengths = (bank**2).sum(1)
    lifted = np.column_stack([bank, np.sqrt(lengths.max() - lengths)])
    near = NearestNeighbors(n_neighbors=k).fit(lifted)
    index = near.kneighbors(np.column_stack([unit, np.zeros(40)]))[1]
    guidance = np.einsum("rd,rkd->r", unit, bank[index]) / k
    want = -guidance * np.log(np.exp(g).sum(1))
    scorer = NNGuide(k=k).fit(torch.from_numpy(x), logits=torch.from_numpy(f))
    got = scorer.score(torch.from_numpy(y), torch.from_numpy(g))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_large_logits_away_from_the_data_do_not_convince():
    x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0]])
    logits = torch.tensor([[4.0, 0.0]]).repeat(3, 1)
    scorer = NNGuide(k=2).fit(x, logits=logits)
    rows = torch.tensor([[1.0, 0.05], [0.0, 1.0]])
    usual, unusual = scorer.score(rows, logits[:2]).tolist()
    assert usual < -10.0
    assert unusual > -2.0


def test_a_sample_lines_rows_up_with_their_logits():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=rng).double()
    logits = x @ torch.randn(4, 3, generator=rng).double() + 6.0
    scorer = NNGuide(k=1, m=100).fit(x, logits=logits)
    assert scorer.flags == ("sampled",)
    evidence = torch.logsumexp(logits, 1)
    bank = x / x.norm(dim=1, keepdim=True) * evidence[:, None]
    assert float(torch.cdist(scorer.bank, bank).amin(1).max()) < 1e-6


def test_negative_evidence_is_warned_of():
    x = torch.ones(5, 2)
    with pytest.warns(SondeWarning, match="NNGuide: 5 of 5 fitted rows have negative log evidence"):
        scorer = NNGuide(k=1).fit(x, logits=x - 9.0)
    assert scorer.conventions["negative_evidence"] == 5


def test_fewer_rows_than_k_takes_all_and_says_so():
    x = torch.rand(4, 3)
    scorer = NNGuide(k=10).fit(x, logits=x)
    assert scorer.k == 4
    assert "few_rows" in scorer.flags


@pytest.mark.parametrize(("n_classes", "flags"), [(4, ()), (20, ("many_neighbours",))])
def test_more_neighbours_than_half_of_a_predicted_class_are_flagged(n_classes, flags):
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    logits = 5.0 * torch.eye(n_classes)[torch.arange(200) % n_classes]
    assert NNGuide(k=10).fit(x, logits=logits).flags == flags


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="NNGuide: expected 1 <= k <= m, got k=5 and m=2"):
        NNGuide(k=5, m=2)
    x = torch.rand(4, 3)
    scorer = NNGuide(k=1).fit(x, logits=x)
    with pytest.raises(ShapeError, match=r"NNGuide.score: expected dim=3 \(as fitted\), got dim=2"):
        scorer.score(x[:, :2], x)
    with pytest.raises(ShapeError, match=r"NNGuide.score: expected classes=3 \(as fitted\), got"):
        scorer.score(x, x[:, :2])
