"""States of decoders: by loops, the teacher itself, and which positions count."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.train import GenericToSpecific, shared_mask


def states(dim, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(3, 5, dim, generator=draw, dtype=torch.float64) + 1.0


MASK = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()


@pytest.mark.truth("loops over positions and units")
@pytest.mark.parametrize("over", ["all", "masked", "visible"])
def test_the_value_is_that_of_loops(over):
    x, y = states(4), states(6, 1)
    loss = GenericToSpecific(4, 6, over).double()
    total, n = 0.0, 0
    for row in range(3):
        for p in range(5):
            if over == "all" or bool(MASK[row, p]) == (over == "masked"):
                mean = y[row, p].mean()
                spread = ((y[row, p] - mean).square().mean() + 1e-5).sqrt()
                gap = (loss.line(x[row, p]) - (y[row, p] - mean) / spread).abs()
                total += sum(0.5 * g * g if g < 1 else g - 0.5 for g in gap.tolist())
                n += 6
    assert loss(x, y, MASK).item() == pytest.approx(total / n)


def test_the_teacher_itself_loses_nothing_and_gets_no_gradient():
    y = states(6).requires_grad_()
    loss = GenericToSpecific(6, 6, "masked").double()
    nn.init.eye_(loss.line.weight)
    nn.init.zeros_(loss.line.bias)
    same = nn.functional.layer_norm(y.detach(), (6,))
    assert loss(same, y, MASK).item() == 0.0
    other = same + 10.0 * ~MASK[..., None]  # where nothing was hidden
    assert loss(other, y, MASK).item() == 0.0
    loss(other + 1.0, y, MASK).backward()
    assert y.grad is None


def test_masks_hide_as_many_positions_in_each_row():
    mask = shared_mask(200, 16, 0.75, torch.Generator().manual_seed(0))
    assert mask.sum(1).unique().tolist() == [12]
    assert float((mask.double().mean(0) - 0.75).abs().max()) < 0.1


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="a mask with over='masked', got none"):
        GenericToSpecific(4, 4, "masked")(states(4), states(4))
    with pytest.raises(InputError, match="expected masked positions, got none"):
        GenericToSpecific(4, 4, "masked").double()(states(4), states(4), ~MASK & MASK)
