import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from detect.head_rows import SMALL_HEAD, made
from sonde.core.errors import InputError, ShapeError
from sonde.detect.fdbd import FDBD


@pytest.mark.truth("worked out by hand")
def test_known_values():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    scorer = FDBD().fit(x, head=SMALL_HEAD)
    row = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    assert scorer.score(row).tolist() == pytest.approx([-0.49497475], rel=1e-8)
    assert scorer.value == pytest.approx(0.5**0.5)


@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows")
def test_matches_a_peer():
    rows = made()
    want = [-0.13145952, -0.88455498, -0.27707103, -0.29663238]
    scorer = FDBD().fit(rows.x, head=rows.head)
    assert scorer.score(rows.fresh).tolist() == pytest.approx(want, rel=2e-6)


@pytest.mark.truth("numpy, one row and one pair of classes at a time")
def test_brute_force():
    rows = made()
    x, y, weight, bias = (v.numpy() for v in rows)
    want = []
    for row in y:
        logits = weight @ row + bias
        c = int(logits.argmax())
        gaps = [
            abs(logits[c] - logits[j]) / np.linalg.norm(weight[c] - weight[j])
            for j in range(3)
            if j != c
        ]
        want.append(-np.mean(gaps) / np.linalg.norm(row - x.mean(0)))
    got = FDBD().fit(rows.x, head=rows.head).score(rows.fresh)
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.truth("the nearest point where two logits agree, found by a solver")
def test_it_is_the_distance_to_the_boundary():
    weight, bias = SMALL_HEAD[0][:2], SMALL_HEAD[1][:2]
    x = torch.tensor([[0.3, 0.1], [0.1, -0.5]], dtype=torch.float64)
    row = np.array([2.0, 1.0])
    gap = (weight[0] - weight[1]).numpy()
    shift = float(bias[0] - bias[1])
    constraint = {"type": "eq", "fun": lambda z: gap @ z + shift}
    found = minimize(lambda z: ((z - row) ** 2).sum(), row, constraints=[constraint])
    want = -np.sqrt(found.fun) / np.linalg.norm(row - x.mean(0).numpy())
    got = FDBD().fit(x, head=(weight, bias)).score(torch.from_numpy(row[None]))
    assert got.tolist() == pytest.approx([want], rel=1e-5)


def test_classes_with_the_same_weights_have_no_boundary():
    rows = made()
    twice = torch.cat([rows.weight, rows.weight[:1]]), torch.cat([rows.bias, rows.bias[:1] - 1.0])
    want = FDBD().fit(rows.x, head=rows.head).score(rows.fresh)
    got = FDBD().fit(rows.x, head=twice).score(rows.fresh)
    won_by_first = (rows.fresh @ rows.weight.T + rows.bias).argmax(1) == 0
    torch.testing.assert_close(got[won_by_first], want[won_by_first])
    assert bool(torch.isfinite(got).all())


def test_a_row_at_the_mean_is_the_most_usual_one():
    rows = made()
    scorer = FDBD().fit(rows.x, head=rows.head)
    score = scorer.score(torch.cat([rows.x.mean(0)[None], rows.x]))
    assert int(score.argmin()) == 0
    assert bool(torch.isfinite(score).all())


def test_as_many_classes_as_are_promised_are_taken(monkeypatch):
    rows = made()
    monkeypatch.setattr("sonde.detect.fdbd.MOST_CLASSES", 3)
    assert FDBD().fit(rows.x, head=rows.head).score(rows.fresh).shape == (4,)


def test_errors_say_what_to_do():
    rows = made()
    with pytest.raises(InputError, match="FDBD: expected a head of two or more classes with diff"):
        FDBD().fit(rows.x, head=(rows.weight[:1], rows.bias[:1]))
    with pytest.raises(InputError, match="FDBD: expected a head of at most 8192 classes"):
        FDBD().fit(rows.x, head=(torch.ones(8193, 6), None))
    with pytest.raises(ShapeError, match=r"FDBD.score: expected dim=6 \(as fitted\), got dim=3"):
        FDBD().fit(rows.x, head=rows.head).score(rows.x[:, :3])
