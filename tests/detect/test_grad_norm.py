import math

import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.detect import GradNorm

WEIGHT = torch.tensor([[0.5, -0.25, 0.0, 1.0], [-0.5, 0.75, 0.25, 0.0], [0.0, 0.5, -1.0, 0.5]])
BIAS = torch.tensor([0.25, 0.0, -0.5])
ROWS = torch.tensor(
    [[1.0, 1.0, 1.0, 1.0], [-2.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.25, 0.0, -3.0, -1.0]]
)


def _logits(x):
    return x @ WEIGHT.to(x).T + BIAS.to(x)


def _score(x, logits, **parameters):
    return GradNorm(**parameters).fit(x, logits=logits).score(x, logits)


def _by_backward(x, temperature):
    """Minus the sum of absolute entries of the gradient in the weight, one row at a time."""
    weight = WEIGHT.to(x).requires_grad_(True)
    found = []
    for row in x:
        logits = row @ weight.T + BIAS.to(x)
        loss = -torch.log_softmax(logits / temperature, dim=0).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        found.append(-float(gradient.abs().sum()))
    return found


@pytest.mark.truth("automatic differentiation in the weight, one row at a time")
@pytest.mark.parametrize("temperature", [1.0, 0.5, 10.0])
def test_equals_a_backward_pass(temperature):
    x = 3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(1)).double()
    got = _score(x, _logits(x), temperature=temperature)
    assert got.tolist() == pytest.approx(_by_backward(x, temperature), rel=1e-9)


@pytest.mark.truth("pytorch-ood 0.4.0, GradNorm on the weight of a linear layer")
def test_equals_another_library():
    want = [-2.65526098, -3.756638367, 0.0, -4.696414286]
    assert _score(ROWS, _logits(ROWS)).tolist() == pytest.approx(want, rel=1e-6)
    want = [-0.443017241, -0.710459378, 0.0, -0.906779462]
    assert _score(ROWS, _logits(ROWS), temperature=2.5).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("finite differences")
def test_known_value():
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    weight = torch.tensor([[0.2, 0.1, 0.0], [-0.3, 0.4, 0.1]], dtype=torch.float64)

    def loss(w):
        f = (w @ x[0]).tolist()
        return math.log(sum(math.exp(v) for v in f)) - sum(f) / 2

    total = 0.0
    for i in range(2):
        for j in range(3):
            step = torch.zeros_like(weight)
            step[i, j] = 1e-6
            total += abs(loss(weight + step) - loss(weight - step)) / 2e-6
    got = _score(x, x @ weight.T)
    assert got.tolist() == pytest.approx([-total], rel=1e-8)
    assert got.tolist() == pytest.approx([-1.68542429], rel=1e-8)


@pytest.mark.truth("an undecided row has no gradient; a row twice as long has twice as much")
def test_undecided_rows_are_the_most_unusual():
    even = torch.zeros(4, 3)
    assert _score(ROWS, even).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    torch.testing.assert_close(_score(2 * ROWS, _logits(ROWS)), 2 * _score(ROWS, _logits(ROWS)))


@pytest.mark.truth("the mean of the scores")
def test_value_is_the_mean_score(monkeypatch):
    scorer = GradNorm().fit(ROWS, logits=_logits(ROWS))
    mean = float(scorer.score(ROWS, _logits(ROWS)).double().mean())
    assert float(scorer) == pytest.approx(mean, rel=1e-6)
    monkeypatch.setattr("sonde.detect.grad_norm.CHUNK_ENTRIES", 4)
    assert float(GradNorm().fit(ROWS, logits=_logits(ROWS))) == pytest.approx(float(scorer))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="GradNorm: expected temperature above 0"):
        GradNorm(temperature=-1.0)
    scorer = GradNorm().fit(ROWS, logits=_logits(ROWS))
    with pytest.raises(ShapeError, match=r"GradNorm.score: expected dim=4 \(as fitted\), got"):
        scorer.score(ROWS[:, :2], _logits(ROWS))
    with pytest.raises(ShapeError, match=r"GradNorm.score: expected classes=3 \(as fitted\), got"):
        scorer.score(ROWS, ROWS[:, :2])
