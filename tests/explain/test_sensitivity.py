"""Attributions of sets against what taking them away does: linear models, and loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models import cnn, gpt2
from sonde.core import InputError
from sonde.explain import (
    Baseline,
    GradTimesInput,
    Infidelity,
    Objective,
    Saliency,
    SensitivityN,
    Shapley,
)

ZERO = Baseline("zero")


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("a linear model: sums of the parts are the fall, whatever the set")
def test_the_parts_of_a_linear_model_are_right_and_turned_ones_wrong():
    net, x = nn.Linear(8, 2).double(), rows(5, 8)
    found = GradTimesInput().explain(net, x)
    value = torch.as_tensor(found.value)
    assert SensitivityN(ZERO).judge(net, x, found).value == pytest.approx(1.0)
    assert SensitivityN(ZERO).judge(net, x, replace(found, value=-value)).value == pytest.approx(-1)
    assert Infidelity(ZERO).judge(net, x, found).value == pytest.approx(0.0, abs=1e-20)
    tripled = Infidelity(ZERO).judge(net, x, replace(found, value=3 * value))
    assert tripled.value == pytest.approx(4 * float(torch.as_tensor(tripled.null)))
    assert tripled.scale.tolist() == pytest.approx([1 / 3] * 5)
    assert tripled.scaled == pytest.approx(0.0, abs=1e-20)
    nothing = Infidelity(ZERO).judge(net, x, replace(found, value=0 * value))
    assert nothing.value == pytest.approx(float(torch.as_tensor(nothing.null)))
    assert nothing.scale.tolist() == [0.0] * 5


@pytest.mark.truth("every set of two of four places in a loop, numpy's correlation")
def test_all_sets_of_two_in_a_loop():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, target = rows(1, 4, seed=2), Objective(target=1)
    found = GradTimesInput().explain(net, x, objective=target)
    a = np.asarray(found.value)[0]
    judged = SensitivityN(ZERO, n_sets=4000, remove=(0.5,)).judge(net, x, found, objective=target)
    missed = Infidelity(ZERO, n_sets=4000, remove=(0.5,)).judge(net, x, found, objective=target)
    said, fell = [], []
    for i in range(4):
        for j in range(i):
            left = x.clone()
            left[0, [i, j]] = 0.0
            said.append(a[i] + a[j])
            fell.append(float((net(x) - net(left))[0, 1].detach()))
    said, fell = np.array(said), np.array(fell)
    assert judged.value == pytest.approx(np.corrcoef(said, fell)[0, 1], abs=0.03)
    assert missed.value == pytest.approx(np.mean((said - fell) ** 2), rel=0.08)
    assert judged.by_share.tolist() == [judged.value]


def test_texts_and_pictures_and_more_exact_parts_do_better():
    model, x = cnn(), rows(2, 1, 4, 4).float()
    found = Saliency().explain(model, x)
    few = {"n_sets": 6, "remove": (0.3,)}
    rough = SensitivityN(**few).judge(model, x, found)
    assert -1.0 <= rough.value <= 1.0
    text = gpt2()
    ids = {
        "input_ids": torch.tensor([[3, 7, 2, 5], [9, 4, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    shares = Shapley(ZERO).explain(text, ids)
    slopes = GradTimesInput().explain(text, ids)
    test = Infidelity(ZERO, n_sets=20)
    assert test.judge(text, ids, shares).value < test.judge(text, ids, slopes).value
    with pytest.raises(InputError, match=r"fractions in \(0, 1\)"):
        SensitivityN(remove=(1.0,))
