import math

import numpy as np
import pytest
import torch

from detect.head_rows import SMALL_HEAD, made
from sonde.core.errors import InputError, ShapeError
from sonde.detect import COSTARR

WEIGHT, BIAS = SMALL_HEAD
ROWS = torch.tensor([[3.0, 0.0], [2.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
FRESH = torch.tensor([[2.0, 1.0], [1.0, 0.9], [1.0, 0.2]], dtype=torch.float64)


def _logits(x, head=SMALL_HEAD):
    return x @ head[0].T.to(x) + head[1].to(x)


def _fit(x=ROWS, label=(0, 0, 0), head=SMALL_HEAD, **parameters):
    return COSTARR(**parameters).fit(x, label, logits=_logits(x, head), head=head)


@pytest.mark.truth("the formulas in numpy, for three rows of one class")
def test_equals_the_reference_numbers():
    scorer = _fit(logit="minmax", logit_range=(-0.5, 4.0))
    halves = [np.r_[_unit(h), _unit(h * WEIGHT[0].numpy())] for h in ROWS.numpy()]
    assert scorer.mean[0].tolist() == pytest.approx(np.mean(halves, 0).tolist(), rel=1e-9)
    rows, logits, fresh, weight = (v.numpy() for v in (ROWS, _logits(ROWS), FRESH, WEIGHT))
    given = {"use": "both", "logit": "minmax", "ends": (-0.5, 4.0)}
    want = _by_hand(rows, (0, 0, 0), logits, weight, fresh, _logits(FRESH).numpy(), **given)
    assert scorer.score(FRESH, _logits(FRESH)).tolist() == pytest.approx(want, rel=1e-9)
    assert scorer.conventions["classes_without_rows"] == [1, 2]
    assert scorer.labels.tolist() == [0]


@pytest.mark.truth("the smallest winning logit of the three rows is 2, the largest 4")
def test_range_of_the_logit_comes_from_the_fit():
    scorer = _fit(logit="minmax")
    assert scorer.logit_range == (2.0, 4.0)
    plain = _fit().score(FRESH, _logits(FRESH))
    got = scorer.score(FRESH + FRESH.new_tensor([1.0, 0.0]), _logits(FRESH) + 1.0)
    factor = ((_logits(FRESH) + 1.0).amax(1) - 2.0).clamp(0, 2) / 2
    want = _fit().score(FRESH + FRESH.new_tensor([1.0, 0.0]), _logits(FRESH) + 1.0) * factor
    torch.testing.assert_close(got, want)
    assert bool((plain < 0).all())


def _cosine(a, b):
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0


def _unit(a):
    return a / np.linalg.norm(a) if np.linalg.norm(a) else a


def _by_hand(rows, label, logits, weight, fresh, fresh_logits, use, logit, ends=None):
    """Every formula, one row and one class at a time."""
    means, dim = {}, rows.shape[1]
    wins = [f.max() for f, y in zip(logits, label, strict=True) if f.argmax() == y]
    for c in range(len(weight)):
        mine = [h for h, y in zip(rows, label, strict=True) if y == c]
        right = [
            h for h, f, y in zip(rows, logits, label, strict=True) if y == c and f.argmax() == c
        ]
        both = [np.r_[_unit(h), _unit(h * weight[c])] for h in (right or mine)]
        if both:
            means[c] = np.mean(both, axis=0)
    take = {"both": slice(None), "pre": slice(0, dim), "post": slice(dim, None)}[use]
    out = []
    for h, f in zip(fresh, fresh_logits, strict=True):
        if logit == "zscore":
            z = (f - f.mean()) / f.std()
            found = []
            for c, m in means.items():
                pre, post = _cosine(h, m[:dim]), _cosine(h * weight[c], m[dim:])
                like = {"both": (pre + post) / 2, "pre": pre, "post": post}[use]
                found.append(z[c] * like)
            out.append(-max(found))
            continue
        c = int(f.argmax())
        v = np.r_[_unit(h), _unit(h * weight[c])]
        like = _cosine(v[take], means[c][take]) if c in means else 0.0
        if logit == "minmax":
            low, high = ends or (min(wins), max(wins))
            like *= np.clip((f.max() - low) / (high - low), 0, 1)
        out.append(-like)
    return out


@pytest.mark.truth("the formulas in numpy, one row and one class at a time")
@pytest.mark.parametrize("logit", ["none", "minmax", "zscore"])
@pytest.mark.parametrize("use", ["both", "pre", "post"])
def test_equals_single_rows(use, logit):
    rows = made()
    rows = rows._replace(fresh=torch.cat([rows.fresh, 9 * rows.fresh, 0.01 * rows.fresh]))
    logits, fresh_logits = _logits(rows.x, rows.head), _logits(rows.fresh, rows.head)
    label = logits.argmax(1)
    label[::7] = (label[::7] + 1) % 3
    scorer = _fit(rows.x, label, rows.head, use=use, logit=logit)
    plain = [t.numpy() for t in (rows.x, label, logits, rows.weight, rows.fresh, fresh_logits)]
    got = scorer.score(rows.fresh, fresh_logits)
    assert got.tolist() == pytest.approx(_by_hand(*plain, use=use, logit=logit), rel=1e-9)
    assert scorer.range == ((-math.inf, math.inf) if logit == "zscore" else (-1.0, 1.0))


@pytest.mark.truth("the head itself: attenuated features and the bias sum to the logit")
def test_attenuated_features_sum_to_the_logit():
    rows = made()
    scorer = _fit(rows.x, _logits(rows.x, rows.head).argmax(1), rows.head)
    total = (rows.fresh[:, None] * scorer.weight).sum(2) + rows.bias
    torch.testing.assert_close(total, _logits(rows.fresh, rows.head))


@pytest.mark.truth("a row and any positive multiple of it have the same cosines")
@pytest.mark.parametrize("use", ["both", "pre", "post"])
def test_length_of_a_row_does_not_matter(use):
    scorer = _fit(use=use)
    logits = _logits(FRESH)
    short, long = scorer.score(FRESH * 1e-50, logits), scorer.score(FRESH * 1e50, logits)
    torch.testing.assert_close(short, scorer.score(FRESH, logits))
    torch.testing.assert_close(long, short)


@pytest.mark.truth("rows that use another feature than their class, by construction")
def test_sees_what_the_head_hides():
    weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(200) % 2
    x = torch.eye(2, 3)[label] * 3 + 0.2 * torch.rand(200, 3, generator=rng)
    scorer = COSTARR().fit(x, label, logits=x @ weight.T, head=(weight, None))
    odd = x[:50] + torch.tensor([0.0, 0.0, 3.0])
    usual, unusual = scorer.score(x, x @ weight.T), scorer.score(odd, odd @ weight.T)
    torch.testing.assert_close(odd @ weight.T, x[:50] @ weight.T)
    assert float(unusual.min()) > float(usual.max())


@pytest.mark.truth("by definition: nothing to compare is a familiarity of 0")
def test_rows_of_zeros_and_classes_without_rows_score_zero():
    scorer = _fit()
    zero = torch.zeros(1, 2, dtype=torch.float64)
    logits = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert scorer.score(zero, logits).tolist() == [0.0]
    assert scorer.score(FRESH[:1], logits.roll(1, 1)).tolist() == [0.0]


@pytest.mark.truth("means over all rows of the label, in numpy")
def test_classes_never_predicted_rightly_take_all_their_rows():
    label = [0, 0, 1]  # the last row is predicted as 0
    scorer = _fit(label=label)
    assert scorer.conventions["classes_never_predicted_rightly"] == [1]
    h = ROWS[2].numpy()
    want = np.r_[_unit(h), _unit(h * WEIGHT[1].numpy())]
    assert scorer.mean[1].tolist() == pytest.approx(want.tolist())
    assert scorer.n == 3
    assert scorer.value == 1.0


def test_says_that_the_formula_is_reconstructed():
    scorer = _fit(label=[0, -1, 0])
    assert scorer.conventions["fidelity"] == "reconstructed"
    assert "reconstructed" in (COSTARR.__doc__ or "")
    assert scorer.flags == ("unlabelled",)
    assert scorer.n == 2


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="expected labels below 3, the number of logits, got 3"):
        _fit(label=[0, 3, 0])
    with pytest.raises(InputError, match="expected labelled rows, got none"):
        _fit(label=[-1, -1, -1])
    with pytest.raises(InputError, match="correctly predicted rows, got none"):
        _fit(label=[1, 1, 1], logit="minmax")
    assert math.isfinite(float(_fit(label=[1, 1, 1]).score(FRESH, _logits(FRESH)).sum()))
    one = (torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(
        InputError, match="compares the logits of a row, which needs several classes, got 1"
    ):
        _fit(ROWS.float(), [0, 0, 0], one, logit="zscore")
    with pytest.raises(ShapeError, match="Fit it at the input of that layer"):
        COSTARR().fit(torch.ones(3, 4), [0, 0, 0], logits=torch.ones(3, 3), head=SMALL_HEAD)
    with pytest.raises(ShapeError, match=r"COSTARR.score: expected dim=2 \(as fitted\), got dim=1"):
        _fit().score(FRESH[:, :1], _logits(FRESH))
    with pytest.raises(InputError, match=r"expected logit_range as \(low, high\)"):
        COSTARR(logit_range=(1.0, 1.0))


def test_rows_of_one_direction_are_flagged():
    assert "dead" not in _fit().flags
    same = torch.ones(4, 2) * torch.tensor([[1.0], [2.0], [0.5], [7.0]])
    assert "dead" in _fit(same, [0, 1, 0, 2]).flags
