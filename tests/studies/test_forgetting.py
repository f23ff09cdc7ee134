"""Steps until a net names a class again, on a net whose training can be followed by hand."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._forgetting import (
    BACK,
    CLASS,
    MOST,
    RELEARN_RATE,
    few_of_each,
    figures_of,
    sides_of,
    stand,
    steps_to_relearn,
)


def _net(rival: float, masked: float = 0.0) -> nn.Linear:
    """Return a map of one number to ten classes; only class 0 competes with the class."""
    net = nn.Linear(1, 10)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.fill_(-100.0)
        net.weight[0], net.bias[0] = rival, 0.0
        net.weight[CLASS], net.bias[CLASS] = 9.0, masked
    net.bias.requires_grad_(False)
    return net


def _rows(own: list[float], other: list[float]) -> tuple[Tensor, Tensor]:
    label = torch.tensor([CLASS] * len(own) + [0] * len(other))
    return torch.tensor([*own, *other]).float()[:, None], label


@pytest.mark.truth("steps of Adam of the size of its rate, counted by hand")
@pytest.mark.parametrize("masked", [0.0, -1e3])
def test_a_class_is_back_when_two_weights_have_met(masked: float):
    """The row of the class starts at 0, even if it was masked; both weights move by the rate.

    Their gradients are nearly constant, so Adam moves each by its rate in a step, towards the other
    one and past it. From then on the class is named where the number is positive.
    """
    shown, rival = _rows([1.0], [-1.0]), 51 * RELEARN_RATE
    back = math.ceil(rival / (2 * RELEARN_RATE))
    net = _net(rival, masked)
    before = copy.deepcopy(net.state_dict())
    assert back == 26
    assert steps_to_relearn(net, shown, _rows([1, 2, 3, 4, -1], [-1] * 20)) == back
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert steps_to_relearn(_net(-rival, masked), shown, _rows([1.0], [-1.0])) == 0


@pytest.mark.truth("balanced accuracy by hand: (2/5 + 1) / 2")
def test_many_other_rows_do_not_make_up_for_a_class_that_is_missed():
    held = _rows([1, 1, -1, -1, -1], [-1] * 20)  # 22 of 25 right in the end
    assert (2 / 5 + 1) / 2 < BACK < 22 / 25
    assert steps_to_relearn(_net(51 * RELEARN_RATE), _rows([1.0], [-1.0]), held) == MOST


def test_the_first_examples_of_each_class_are_taken():
    assert few_of_each(torch.tensor([3, 0, 3, 0, 3, 0]), 2).tolist() == [1, 3, 0, 2]


@pytest.mark.truth("a net that was not changed, and its accuracy counted example by example")
@pytest.mark.slow
def test_an_unchanged_net_has_forgotten_nothing():
    draw = torch.Generator().manual_seed(0)
    x, label = torch.randn(400, 6, generator=draw), torch.arange(400) % 10
    net = nn.Linear(6, 10)
    with torch.no_grad():
        net.weight.copy_(torch.randn(10, 6, generator=draw))
        x += 0.5 * net.weight[label]
    model = Model(net)
    found = {"as it was": stand(model, net, sides_of(model, x, label, 200), net)}
    figures = figures_of(found, "as it was", 0.03)
    assert figures["near retraining"] == pytest.approx(-0.9)
    assert figures["half forgotten"] == pytest.approx(-0.5)
    assert figures["retained"] == pytest.approx(0.03)
    with torch.no_grad():
        right = (net(x).argmax(1) == label)[200:]
    own = label[200:] == CLASS
    for arm in ("before", "as it was"):
        assert figures[f"forgotten class | {arm}"] == pytest.approx(
            float(right[own].double().mean())
        )
        assert figures[f"other classes | {arm}"] == pytest.approx(
            float(right[~own].double().mean())
        )
