import pytest
import torch

from exact_softmax import LOGITS
from sonde.core.errors import ShapeError
from sonde.detect import MaxLogit


def _score(logits):
    return MaxLogit().fit(logits, logits=logits).score(logits)


@pytest.mark.truth("the largest number of each row, by Python")
def test_is_minus_the_largest_logit():
    assert _score(LOGITS).tolist() == [-max(row) for row in LOGITS.tolist()]
    scorer = MaxLogit().fit(LOGITS, logits=LOGITS)
    assert float(scorer) == pytest.approx(-sum(max(row) for row in LOGITS.tolist()) / len(LOGITS))


@pytest.mark.truth("pytorch-ood 0.4.0")
def test_equals_another_library():
    logits = torch.tensor([[3.0, 1.5, -0.5], [0.1, 0.2, 0.5], [9.0, -2.0, 1.0], [-1.0, -6.0, -1.5]])
    assert _score(logits).tolist() == pytest.approx([-3.0, -0.5, -9.0, 1.0])


@pytest.mark.truth("adding 7 to all logits takes 7 off the score")
def test_a_constant_shifts_it():
    torch.testing.assert_close(_score(LOGITS + 7.0), _score(LOGITS) - 7.0)


def test_half_precision_is_read_as_the_numbers_that_it_holds():
    logits = torch.tensor([[6e4, 5e4]], dtype=torch.float16)
    assert _score(logits).tolist() == [-float(logits[0, 0])]


def test_errors_say_what_to_do():
    with pytest.raises(ShapeError, match=r"MaxLogit.score: expected classes=5 \(as fitted\), got"):
        MaxLogit().fit(LOGITS, logits=LOGITS).score(LOGITS[:, :2])
