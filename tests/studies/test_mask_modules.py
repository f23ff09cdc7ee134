"""Key points of masks, gates by lot, and the order in which levels are fused."""

import pytest
import torch

from sonde_studies._mask_modules import ClassGate, FusedLevels, key_points


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


@pytest.mark.parametrize("two_ways", [False, True])
def test_levels_reach_those_that_they_should(two_ways):
    """One way the coarse level reaches the fine one; two ways, fine first, the other way round."""
    torch.manual_seed(1)
    fused = FusedLevels(two_ways)
    for part in fused.maps:
        torch.nn.init.eye_(part.weight[:, :, 0, 0].data)
    levels = [torch.rand(1, 16, side, side, requires_grad=True) for side in (8, 4, 2)]
    fine, _, coarse = fused(*levels)
    to_coarse = torch.autograd.grad(coarse.sum(), levels[0], retain_graph=True, allow_unused=True)[
        0
    ]
    to_fine = torch.autograd.grad(fine.sum(), levels[2], allow_unused=True)[0]
    assert (to_coarse is not None and bool(to_coarse.any())) == two_ways
    assert (to_fine is not None and bool(to_fine.any())) == (not two_ways)
