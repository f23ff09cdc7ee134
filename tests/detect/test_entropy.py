import math

import pytest
import torch

from exact_softmax import LOGITS, exactly
from sonde.core.errors import ShapeError
from sonde.detect import Entropy


def _score(logits):
    return Entropy().fit(torch.zeros(len(logits), 1), logits=logits).score(logits)


def _entropy(p):
    return -sum(value * value.ln() for value in p)


@pytest.mark.truth("softmax in 120 decimal digits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_exact_entropy_however_small(dtype):
    want = exactly(_entropy, LOGITS)
    assert min(want) < 1e-30
    rel = 2e-6 if dtype == torch.float32 else 1e-13
    assert _score(LOGITS.to(dtype)).tolist() == pytest.approx(want, rel=rel, abs=0.0)


@pytest.mark.truth("pytorch-ood 0.4.0")
def test_equals_another_library():
    logits = torch.tensor(
        [[3.0, 1.5, -0.5, 0.0, 2.5], [0.1, 0.2, 0.3, 0.4, 0.5], [-1.0, -6.0, -1.5, 2.0, 1.9]]
    )
    want = [1.114550226, 1.599502485, 0.861109705]
    assert _score(logits).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("worked out by hand")
def test_known_values():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [5.0, -1.0, -1.0]])
    got = _score(logits).tolist()
    assert got == pytest.approx([0.83239558, math.log(3.0), 0.03454355], rel=1e-6)


def test_bits_and_bounds():
    scorer = Entropy().fit(torch.zeros(4, 8), logits=torch.zeros(4, 8))
    assert scorer.bits().value == pytest.approx(3.0)
    assert _score(torch.tensor([[3.0], [-2.0]])).tolist() == [0.0, 0.0]


def test_logits_as_wide_as_the_type_give_no_nan():
    huge = torch.tensor([[3e38, -3e38, 0.0], [3e38, 3e38, -3e38]])
    assert _score(huge).tolist() == pytest.approx([0.0, math.log(2.0)])


def test_a_constant_does_not_change_it():
    torch.testing.assert_close(_score(LOGITS + 8.0), _score(LOGITS), rtol=1e-5, atol=0.0)


def test_errors_say_what_to_do():
    with pytest.raises(ShapeError, match=r"Entropy.score: expected classes=5 \(as fitted\), got"):
        Entropy().fit(LOGITS, logits=LOGITS).score(LOGITS[:, :2])
