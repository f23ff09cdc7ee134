"""Clean images are taught away on a copy, and the planted trigger stays."""

from math import log

import pytest
import torch
from torch.nn.functional import cross_entropy

from backdoor import N, clean_images, net, stand
from forgetting import digits
from sonde.core import Model
from sonde.edit import CleanUnlearning


@pytest.mark.slow
@pytest.mark.truth("a trigger that was planted")
def test_the_trigger_outlives_what_clean_images_taught_and_the_model_stays():
    model = Model(net(4))
    before = [x.clone() for x in model.module.state_dict().values()]
    exposed = CleanUnlearning().expose(model, clean_images(model), progress=False)
    right, attack = stand(exposed)
    assert right < 0.75
    assert attack > 0.8
    assert all(map(torch.equal, before, model.module.state_dict().values()))
    again = CleanUnlearning().expose(model, clean_images(model), progress=False)
    assert all(map(torch.equal, exposed.state_dict().values(), again.state_dict().values()))


@pytest.mark.slow
@pytest.mark.truth("the cross-entropy of an answer without any preference, log 10")
def test_the_objective_of_the_paper_makes_clean_answers_surely_wrong():
    model = Model(net(4))
    x, label = (part[N : N + 300] for part in digits())
    surprise = {}
    for objective in ("ascent", "uniform"):
        method = CleanUnlearning(objective=objective, stop=0.2)
        exposed = method.expose(model, clean_images(model), progress=False)
        with torch.no_grad():
            surprise[objective] = float(cross_entropy(exposed(x), label))
    assert surprise["ascent"] > log(10) + 1
    assert surprise["uniform"] == pytest.approx(log(10), abs=0.3)
