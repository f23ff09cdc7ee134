"""Key points of masks, gates by lot, and sizes of modules."""

import pytest
import torch
from torch import nn

from sonde.layers import Exchange
from sonde_studies._mask_modules import ClassGate, key_points
from sonde_studies._unet import WIDTH, Mixed, ShiftedWithin, n_parameters
from sonde_studies.dense_composites import ARMS, PAIRS


@pytest.mark.truth("boxes by hand")
def test_key_points_are_two_corners_and_the_centre():
    mask = torch.zeros(2, 1, 24, 24)
    mask[0, 0, 5, 12], mask[0, 0, 13, 3] = 1.0, 1.0  # half size: lines 2 to 6, columns 1 to 6
    mask[1, 0, 20, 7] = 1.0
    found = key_points(mask).nonzero().tolist()
    assert found == [[0, 2, 1], [0, 4, 3], [0, 6, 6], [1, 10, 3]]


def test_gates_by_lot_are_those_of_the_class_in_another_order():
    torch.manual_seed(0)
    own, lot = ClassGate(by_lot=False), ClassGate(by_lot=True)
    lot.load_state_dict(own.state_dict())
    x = torch.rand(2, 16, 3, 5) + 0.1
    one, other = ((gate(x) / x)[:, 0].flatten(1) for gate in (own, lot))
    assert torch.allclose(one.sort(1).values, other.sort(1).values, atol=1e-5)
    assert not torch.allclose(one, other)


@pytest.mark.truth("numbers of parameters by hand")
def test_arms_of_a_claim_are_of_one_size():
    """Bridge and attention are compared with baselines that are a little larger."""
    size = {arm: n_parameters(nn.ModuleDict(make())) for arm, make in ARMS.items()}
    assert size["small maps"] == size["gate"] == 16 * 8 + 8 + 8 * 16 + 16
    assert size["middle maps"] == size["place gate"] == 280 + 2 * 7 * 7 + 1
    assert size["own maps"] == size["shift within"] == size["shift"] == 2 * 16 * 16
    assert size["one way"] == 3 * (16 * 16 + 16) + 3 * 16 * 16 == 1584
    larger = {key for key, (arm, base) in PAIRS.items() if size[base] > size[arm]}
    assert larger == {"attention", "bridge"}
    equalise = n_parameters(Exchange("equalise", WIDTH))
    assert equalise <= n_parameters(Mixed(2 * WIDTH, WIDTH)) <= 1.02 * equalise
    assert all(size[base] >= size[arm] for arm, base in PAIRS.values())


@pytest.mark.truth("channels moved by hand")
def test_channels_that_shift_within_a_level_stay_in_it():
    x = torch.arange(2 * 16 * 3 * 4).reshape(2, 16, 3, 4).float()
    moved = ShiftedWithin(2).moved(x)
    assert torch.equal(moved[:, :4, 1:], x[:, :4, :-1])
    assert torch.equal(moved[:, 4:8, :-1], x[:, 4:8, 1:])
    assert torch.equal(moved[:, 8:], x[:, 8:])
    net, fine, coarse = ShiftedWithin(2), torch.rand(1, 16, 8, 8), torch.rand(1, 16, 4, 4)
    assert torch.equal(net(fine, coarse)[1], coarse)
    for part in net.maps:
        nn.init.eye_(part.get_parameter("weight")[:, :, 0, 0].data)
    made = net(fine, coarse)
    assert torch.equal(made[1], coarse + net.moved(coarse))
    assert torch.equal(made[1], net(2 * fine, coarse)[1])
