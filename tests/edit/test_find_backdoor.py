"""A hidden trigger is found on the model as it is, drawn, unlearned; clean models are cleared."""

import pytest
import torch
from torch import nn

from backdoor import TARGET, clean_images, net, stand
from forgetting import digits, items_of
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.edit import CleanUnlearning, find_backdoor, remove_backdoor
from sonde.edit.find_backdoor import Pixels, patched

FRESH = 4
"""One of the seeds that the line between likely and not was drawn on: a planted truth, no rate."""


def found_in(poisoned):
    model = Model(net(FRESH, poisoned))
    return model, find_backdoor(model, clean_images(model), progress=False)


@pytest.mark.essential
@pytest.mark.truth("a trigger that was planted")
def test_a_planted_trigger_is_found_where_it_is_and_unlearned():
    model, finding = found_in(True)
    assert stand(model.module)[1] > 0.95
    assert finding.target == TARGET
    assert finding.likely
    assert finding.success > 0.9
    assert float(finding.mask[4:, 4:].sum() / finding.mask.sum()) > 0.6
    said = finding.verdict({TARGET: "seven"})
    assert said.startswith("A backdoor is likely, for class 'seven': a patch on ")
    assert any("#" in line[4:] for line in finding.drawing()[4:])
    before = [x.clone() for x in model.module.state_dict().values()]
    plan = remove_backdoor(model, clean_images(model), finding, progress=False)
    right, attack = stand(plan.fold(model))
    assert attack < 0.1
    assert right > stand(model.module)[0] - 0.03
    assert plan.figures["success_before"] > 0.9 > 0.2 > plan.figures["success_after"]
    assert all(map(torch.equal, before, model.module.state_dict().values()))


@pytest.mark.slow
@pytest.mark.truth("a net that saw clean digits alone")
def test_a_clean_net_is_cleared():
    _, finding = found_in(False)
    assert not finding.likely
    assert finding.ratio >= 1
    assert finding.verdict().startswith("No backdoor was found: no class has a patch much smaller")


@pytest.mark.essential
@pytest.mark.truth("images by hand")
@torch.no_grad()
def test_the_success_of_a_patch_is_a_share_of_the_images_of_other_classes():
    model, (x, label) = Model(net(FRESH)), (part[1100:1150] for part in digits())
    mask, pattern = torch.zeros(8, 8), torch.ones(1, 8, 8)
    mask[5:, 5:] = 1
    pixels = Pixels(model.module, open_inputs(model, items_of(x, label)), 50)
    by_hand = x.clone()
    by_hand[..., 5:, 5:] = 1
    torch.testing.assert_close(patched(x, mask, pattern), by_hand)
    said = model.module(by_hand[label != TARGET]).argmax(1) == TARGET
    assert pixels.success(mask, pattern, TARGET) == pytest.approx(float(said.float().mean()))


def test_bad_input_is_refused():
    model = Model(net(FRESH))
    with pytest.raises(InputError, match="clean images with labels, got no labels"):
        find_backdoor(model, clean_images(model, labels=False))
    rows = [{"input": torch.randn(4), "label": 0}]
    flat = Model(nn.Sequential(nn.Linear(4, 10)))
    with pytest.raises(InputError, match="expected images"):
        find_backdoor(flat, open_inputs(flat, rows))
    few = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(InputError, match="at least 4 classes to compare, got 3"):
        find_backdoor(few, clean_images(few))
    with pytest.raises(InputError, match="wanted in"):
        find_backdoor(model, clean_images(model), wanted=0.0)
    with pytest.raises(InputError, match="stop in"):
        CleanUnlearning(stop=1.0)
    with pytest.raises(InputError, match="with labels, got no labels"):
        CleanUnlearning().expose(model, clean_images(model, labels=False))
