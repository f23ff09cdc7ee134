from decimal import Decimal

import pytest
import torch

from exact_softmax import LOGITS, exactly
from sonde.core.errors import InputError, ShapeError
from sonde.detect import GEN


def _score(logits, **parameters):
    return GEN(**parameters).fit(torch.zeros(len(logits), 1), logits=logits).score(logits)


def _generalised(gamma, m):
    def function(p):
        power = Decimal(gamma)
        return sum((v * (1 - v)) ** power for v in sorted(p, reverse=True)[:m])

    return function


@pytest.mark.truth("softmax in 120 decimal digits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("gamma", "m"), [(0.1, 100), (0.1, 5), (0.1, 3), (0.5, 2), (1.0, 1)])
def test_equals_the_exact_sum(dtype, gamma, m):
    want = exactly(_generalised(gamma, m), LOGITS)
    got = _score(LOGITS.to(dtype), gamma=gamma, m=m)
    rel = 1e-5 if dtype == torch.float32 else 1e-13
    assert got.tolist() == pytest.approx(want, rel=rel, abs=0.0)


@pytest.mark.truth("pytorch-ood 0.4.0, which divides the sum by the number of classes")
def test_equals_another_library():
    logits = torch.tensor(
        [[3.0, 1.5, -0.5, 0.0, 2.5], [0.1, 0.2, 0.3, 0.4, 0.5], [-1.0, -6.0, -1.5, 2.0, 1.9]]
    )
    want = [0.775492463, 0.831717774, 0.701381047]
    assert (_score(logits) / 5).tolist() == pytest.approx(want, rel=1e-6)
    want = [0.428740868, 0.413389839, 0.384798591]
    assert (_score(logits, gamma=0.5, m=3) / 3).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("worked out by hand")
@pytest.mark.parametrize(
    ("m", "want"),
    [(3, [2.48384289, 2.58107131, 1.68442998]), (2, [1.70519397, 1.72071421, 1.13602513])],
)
def test_known_values(m, want):
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [5.0, -1.0, -1.0]])
    assert _score(logits, m=m).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("softmax in 120 decimal digits; pytorch-ood 0.4.0 floors p at 1e-7: 0.9976 each")
def test_nearly_certain_rows_are_told_apart():
    logits = torch.tensor([[30.0, 0.0, 1.0, 2.0, 3.0], [40.0, 0.0, 1.0, 2.0, 3.0]])
    want = exactly(_generalised(0.1, 5), logits)
    got = _score(logits).tolist()
    assert got == pytest.approx(want, rel=1e-5)
    assert got[0] > 2 * got[1]


def test_a_constant_does_not_change_it():
    torch.testing.assert_close(_score(LOGITS + 8.0), _score(LOGITS), rtol=1e-5, atol=0.0)


def test_one_class_and_extreme_logits_give_no_nan():
    assert _score(torch.tensor([[3.0], [-2.0]])).tolist() == [0.0, 0.0]
    assert _score(torch.tensor([[3e38, -3e38, 0.0]])).tolist() == [0.0]


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"GEN: expected gamma in \(0, 1\], got 1.5"):
        GEN(gamma=1.5)
    with pytest.raises(InputError, match="GEN: expected m of at least 1, got 0"):
        GEN(m=0)
    with pytest.raises(ShapeError, match=r"GEN.score: expected classes=5 \(as fitted\), got"):
        GEN().fit(LOGITS, logits=LOGITS).score(LOGITS[:, :2])
