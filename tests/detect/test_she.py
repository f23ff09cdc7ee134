import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.detect import SHE

WEIGHT = torch.tensor([[0.5, -0.25, 0.0, 1.0], [-0.5, 0.75, 0.25, 0.0], [0.0, 0.5, -1.0, 0.5]])
BIAS = torch.tensor([0.25, 0.0, -0.5])
ROWS = torch.tensor(
    [
        [2.0, 0.5, 0.0, 1.0],
        [0.0, 2.0, 1.0, 0.25],
        [0.5, 1.0, -2.0, 0.0],
        [1.5, 0.0, 0.5, 2.0],
        [-1.0, 1.5, 0.0, 0.5],
        [0.0, 0.5, -1.5, 1.0],
        [3.0, -1.0, 2.0, 0.5],
    ]
)
LABEL = torch.tensor([0, 1, 2, 0, 1, 2, 1])
FRESH = torch.tensor(
    [[1.0, 1.0, 1.0, 1.0], [-2.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.25, 0.0, -3.0, -1.0]]
)


def _logits(x):
    return x @ WEIGHT.T + BIAS


def _fit(x=ROWS, label=LABEL):
    return SHE().fit(x, label, logits=_logits(x))


@pytest.mark.truth("pytorch-ood 0.4.0, SHE.fit_features in double precision")
def test_equals_another_library():
    scorer = _fit()
    got = scorer.score(FRESH, _logits(FRESH))
    assert got.tolist() == pytest.approx([-3.75, -3.0, 0.0, -4.8125])
    own = [-5.125, -4.09375, -4.375, -5.75, -3.3125, -3.5, -6.25]
    assert scorer.score(ROWS, _logits(ROWS)).tolist() == pytest.approx(own)
    assert scorer.value == pytest.approx(sum(own[:6]) / 6)  # the last row is predicted wrongly
    assert scorer.n == 6
    assert scorer.labels.tolist() == [0, 1, 2]
    assert scorer.conventions["left_out"] == 1


@pytest.mark.truth("means and products of single rows in plain Python")
def test_equals_single_rows():
    rng = torch.Generator().manual_seed(3)
    x, fresh = torch.randn(200, 4, generator=rng), torch.randn(30, 4, generator=rng)
    label = torch.randint(-1, 3, (200,), generator=rng)
    kept = {c: [] for c in range(3)}
    for row, f, y in zip(x.tolist(), _logits(x).tolist(), label.tolist(), strict=True):
        if f.index(max(f)) == y:
            kept[y].append(row)
    pattern = {c: [sum(v) / len(rows) for v in zip(*rows, strict=True)] for c, rows in kept.items()}
    want = [
        -sum(a * b for a, b in zip(row, pattern[f.index(max(f))], strict=True))
        for row, f in zip(fresh.tolist(), _logits(fresh).tolist(), strict=True)
    ]
    scorer = _fit(x, label)
    got = scorer.score(fresh.double(), _logits(fresh))
    assert got.tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert scorer.n == sum(len(rows) for rows in kept.values())
    assert scorer.flags == ("unlabelled",)


@pytest.mark.truth("the score is linear in the row, for one predicted class")
def test_short_rows_count_as_unusual():
    scorer = _fit()
    whole = scorer.score(ROWS, _logits(ROWS))
    torch.testing.assert_close(scorer.score(ROWS / 4, _logits(ROWS)), whole / 4)
    assert bool((whole / 4 > whole).all())


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"got none for 1 of 3 classes \(2\). Fit on labelled"):
        _fit(ROWS[LABEL != 2], LABEL[LABEL != 2])
    with pytest.raises(InputError, match=r"for 3 of 3 classes \(0, 1, 2\)"):
        _fit(label=torch.full((7,), -1))
    with pytest.raises(InputError, match="SHE: expected labels below 3, the number of logits, got"):
        _fit(label=LABEL + 1)
    with pytest.raises(ShapeError, match=r"SHE.score: expected dim=4 \(as fitted\), got dim=2"):
        _fit().score(FRESH[:, :2], _logits(FRESH))
    with pytest.raises(ShapeError, match=r"SHE.score: expected classes=3 \(as fitted\), got"):
        _fit().score(FRESH, FRESH[:, :2])
    with pytest.raises(InputError, match="needs the column 'logits'"):
        SHE().fit(ROWS, LABEL)
