"""Training again on pictures whose telling block is known: the oracle, turned round, and none."""

import pytest
import torch
from torch import nn

from sonde.core import InputError, ShapeError
from sonde.explain import DiffRoar, Ranked, Roar
from sonde_studies.worlds import block_digits


class Nearest(nn.Module):
    """Answers by the nearest class mean."""

    def __init__(self, means):
        super().__init__()
        self.means = means

    def forward(self, x):
        return -torch.cdist(x.flatten(1), self.means)


def nearest(x, label, seed):
    flat = x.flatten(1)
    return Nearest(torch.stack([flat[label == c].mean(0) for c in range(10)]))


@pytest.fixture(scope="module")
def data():
    found = block_digits(0)
    return found.part(0, 900), found.part(900, 1797)


def ranked(part, scores):
    return Ranked(part.x, part.label, scores)


@pytest.mark.truth("planted: the digit lies in one block, the other is the same for all classes")
def test_the_true_block_is_above_zero_and_turned_round_below(data):
    fit, test = data
    oracle = [ranked(part, part.signal.float()) for part in (fit, test)]
    turned = [ranked(part, -part.signal.float()) for part in (fit, test)]
    test_of = DiffRoar(keep=0.5, n_seeds=1)
    found = test_of.judge(nearest, *oracle)
    plain = float(nearest(fit.x, fit.label, 0)(test.x).argmax(1).eq(test.label).double().mean())
    assert found.range == (-1.0, 1.0)  # a difference of accuracies
    assert found.top.tolist()[0] > plain - 0.02
    assert found.bottom.tolist()[0] == pytest.approx(0.1, abs=0.05)
    assert test_of.judge(nearest, *turned).value == pytest.approx(-found.value)
    assert abs(found.control) < 0.05
    assert found.beyond_control == found.value - found.control
    nothing = [ranked(part, torch.zeros_like(part.signal.float())) for part in (fit, test)]
    flat = DiffRoar(keep=0.5, n_seeds=4).judge(nearest, *nothing)
    assert flat.se is not None
    assert abs(flat.value) < 3 * float(flat.se) + 0.02


@pytest.mark.truth("planted: without the digit's block only chance is left")
def test_without_the_true_block_nothing_is_left(data):
    fit, test = data
    oracle = [ranked(part, part.signal.float()) for part in (fit, test)]
    found = Roar(n_seeds=1, remove=(0.5,)).judge(nearest, *oracle)
    assert float(found.accuracy[0, 0]) == pytest.approx(0.1, abs=0.05)
    assert found.value == pytest.approx(float(found.random[0, 0] - found.accuracy[0, 0]))
    assert found.value > 0.15


@pytest.mark.truth("planted: a mask that is the label tells it, whatever the pixels")
def test_a_mask_that_carries_the_label_is_seen_by_the_control(data):
    fit, test = data
    told = []
    for part in (fit, test):
        scores = -0.001 * torch.arange(128.0).repeat(len(part), 1)
        for k in range(12):
            scores.scatter_(1, (12 * part.label + k).clamp(max=127)[:, None], 1.0 + k)
        told.append(ranked(part, scores.view_as(part.signal)))
    found = DiffRoar(keep=12 / 128, n_seeds=1).judge(nearest, *told)
    assert found.control > 0.5
    assert found.beyond_control < found.value


def test_neighbours_fill_smoothly_and_bad_input_is_named(data):
    fit, _ = data
    ramp = torch.arange(8.0).expand(2, 1, 8, 8).contiguous()
    gone = torch.zeros(2, 8, 8, dtype=torch.bool)
    gone[:, 3:5, 3:5] = True
    filled = Roar(fill="neighbours")._masked(ramp, gone, torch.zeros(1, 8, 8))
    torch.testing.assert_close(filled, ramp, atol=1e-2, rtol=0)
    with pytest.raises(ShapeError, match="expected scores"):
        Ranked(fit.x, fit.label, fit.x)
    rows = Ranked(fit.x.flatten(1), fit.label, fit.x.flatten(1))
    with pytest.raises(InputError, match="needs pictures"):
        Roar(n_seeds=1, fill="neighbours").judge(nearest, rows, rows)
    with pytest.raises(InputError, match=r"\(0, 0\.5\]"):
        DiffRoar(keep=0.9).judge(nearest, rows, rows)
