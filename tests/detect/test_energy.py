import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.detect import Energy

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [5.0, -1.0, -1.0]], dtype=torch.float64)


@pytest.mark.truth("worked out by hand")
@pytest.mark.parametrize(
    ("temperature", "want"),
    [
        (1.0, [-2.40760596, -1.09861229, -5.00494526]),
        (2.0, [-3.36053934, -2.19722458, -5.18984591]),
    ],
)
def test_known_values(temperature, want):
    scorer = Energy(temperature).fit(LOGITS, logits=LOGITS)
    assert scorer.score(LOGITS).tolist() == pytest.approx(want, rel=1e-8)
    assert scorer.value == pytest.approx(sum(want) / 3, rel=1e-8)


def test_a_constant_shifts_it():
    scorer = Energy().fit(LOGITS, logits=LOGITS)
    torch.testing.assert_close(scorer.score(LOGITS + 7.0), scorer.score(LOGITS) - 7.0)


def test_half_precision_does_not_overflow():
    logits = torch.tensor([[6e4, 6e4]], dtype=torch.float16)
    score = Energy().fit(logits, logits=logits).score(logits)
    assert score.tolist() == pytest.approx([-60000.693], rel=1e-4)


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="Energy: expected temperature above 0"):
        Energy(temperature=0.0)
    with pytest.raises(ShapeError, match=r"Energy.score: expected classes=3 \(as fitted\), got"):
        Energy().fit(LOGITS, logits=LOGITS).score(LOGITS[:, :2])
