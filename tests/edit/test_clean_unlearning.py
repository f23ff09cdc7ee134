"""Clean images are taught away on a copy, and the planted trigger stays."""

import pytest
import torch

from backdoor import clean_images, net, stand
from sonde.core import Model
from sonde.edit import CleanUnlearning


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
