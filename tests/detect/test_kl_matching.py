from decimal import Decimal, localcontext

import pytest
import torch

from exact_softmax import LOGITS, exact_softmax
from sonde.core.errors import InputError, ShapeError
from sonde.detect import KLMatching

FIT = torch.tensor(
    [
        [3.0, 1.5, -0.5, 0.0, 2.5],
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [9.0, -2.0, 1.0, 0.5, -4.0],
        [-1.0, -6.0, -1.5, 2.0, 1.9],
        [30.0, 0.0, 1.0, 2.0, 3.0],
    ]
)
FRESH = torch.tensor([[0.2, 4.0, 0.1, 0.3, 0.2], [0.5, 0.1, 2.0, 0.3, 0.2]])


def _fit(logits, **parameters):
    return KLMatching(**parameters).fit(torch.zeros(len(logits), 1), logits=logits)


def _brute_force(fit, fresh):
    """Row by row in decimals: the divergence from each predicted class's mean, and the least."""
    with localcontext() as context:
        context.prec = 120
        by_class = {}
        for row in fit.tolist():
            by_class.setdefault(row.index(max(row)), []).append(exact_softmax(row))
        means = {
            c: [sum(v) / len(rows) for v in zip(*rows, strict=True)] for c, rows in by_class.items()
        }

        def divergence(p, d):
            return sum(a * (a / b).ln() for a, b in zip(p, d, strict=True))

        least = [min(divergence(exact_softmax(r), d) for d in means.values()) for r in fresh]
        own = [divergence(p, means[c]) for c, rows in by_class.items() for p in rows]
        return [float(v) for v in least], float(sum(own) / Decimal(len(fit)))


@pytest.mark.truth("divergences of single rows in 120 decimal digits")
@pytest.mark.parametrize("fit", [FIT, LOGITS, torch.cat([FIT, LOGITS, FRESH])])
def test_equals_single_rows(fit):
    fresh = torch.cat([FIT, FRESH, LOGITS])
    want, value = _brute_force(fit, fresh.tolist())
    scorer = _fit(fit)
    assert scorer.score(fresh).tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert scorer.value == pytest.approx(value, rel=1e-12)


@pytest.mark.truth("pytorch-ood 0.4.0, KLMatching.fit_logits in double precision")
def test_equals_another_library():
    want = [0.274656989, 0.0, 0.170620414, 0.0, 0.173124031, 1.310593698, 0.36841795]
    got = _fit(FIT).score(torch.cat([FIT, FRESH]))
    assert got.tolist() == pytest.approx(want, abs=1e-8)


@pytest.mark.truth("worked out by hand")
def test_known_values():
    typical = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
    fresh = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]], dtype=torch.float64).log()
    scorer = _fit(typical)
    assert scorer.score(fresh).tolist() == pytest.approx([0.23321131, 0.23321131], abs=1e-8)
    only = _fit(typical[1:])
    assert only.score(fresh[:1]).tolist() == pytest.approx([0.64909962], abs=1e-8)


@pytest.mark.truth("a class that is never predicted would be nearest to its own certain row")
def test_classes_that_were_never_predicted_do_not_take_part():
    scorer = _fit(FIT)
    assert scorer.classes.tolist() == [0, 3, 4]
    assert scorer.conventions["classes"] == "3 of 5 were predicted"
    certain = torch.eye(5) * 20.0
    scores = scorer.score(certain)
    assert min(scores[1], scores[2]) > max(scores[0], scores[3], scores[4])


def test_certain_rows_give_no_nan():
    certain = torch.tensor([[2000.0, 0.0, 0.0], [0.0, 2000.0, 0.0]])
    scorer = _fit(certain)
    assert scorer.score(certain).tolist() == [0.0, 0.0]
    assert scorer.range[0] == scorer.value == 0.0  # each row is its class's mean
    fresh = scorer.score(torch.tensor([[0.0, 0.0, 2000.0], [1.0, 1.0, 1.0]]))
    assert bool(torch.isfinite(fresh).all())
    assert float(fresh[0]) > 700.0
    huge = torch.tensor([[1e308, -1e308, 0.0], [0.0, 1e308, 0.0]], dtype=torch.float64)
    assert _fit(huge).score(huge).tolist() == [0.0, 0.0]


@pytest.mark.truth("the same rows at once")
def test_blocks_do_not_matter(monkeypatch):
    rows = torch.randn(37, 6, generator=torch.Generator().manual_seed(0))
    want = _fit(rows)
    monkeypatch.setattr("sonde.detect.kl_matching.BLOCK_ENTRIES", 24)
    monkeypatch.setattr("sonde.detect.kl_matching.LEAST_ROWS", 1)
    got = _fit(rows)
    torch.testing.assert_close(got.typical, want.typical)
    torch.testing.assert_close(got.score(rows), want.score(rows), rtol=1e-12, atol=1e-12)


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="KLMatching: expected at most 4 classes, got 5 logits"):
        _fit(FIT, max_classes=4)
    with pytest.raises(InputError, match="expected max_classes of at least 1, got 0"):
        KLMatching(max_classes=0)
    with pytest.raises(ShapeError, match=r"KLMatching.score: expected classes=5 \(as fitted\)"):
        _fit(FIT).score(FIT[:, :2])
