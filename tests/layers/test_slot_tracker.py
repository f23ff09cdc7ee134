"""Objects that learned references follow through frames."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import SlotTracker


def made(dim=4):
    layer = SlotTracker(dim).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def clip():
    return torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(7)).double()


def by_hand(layer, x, real):
    """The references and weights of one clip, an object and a frame at a time."""
    states = [[layer.norm(s) for s in frame] for frame in x]
    held, out, taken = states[0], [states[0]], []
    for frame in range(1, len(x)):
        after, rows = [], []
        for r in held:
            size = len(r) ** 0.5
            score = [
                layer.query(r) @ layer.key(s) / size * layer.sharpness if here else None
                for s, here in zip(states[frame], real[frame], strict=True)
            ]
            odds = [0.0 if s is None else s.exp() for s in score] + [layer.absent.exp()]
            share = [o / sum(odds) for o in odds]
            found = sum(w * s for w, s in zip(share, [*states[frame], r], strict=True))
            gate = torch.sigmoid(layer.gate(torch.cat([r, found])))
            after.append(layer.norm(r + gate * (found - r)))
            rows.append([float(w) for w in share])
        held = after
        out.append(held)
        taken.append(rows)
    return torch.stack([torch.stack(one) for one in out]), torch.tensor(taken, dtype=x.dtype)


@pytest.mark.truth("the references by loops over objects and frames")
@torch.no_grad()
def test_references_and_weights():
    layer, x = made(), clip()
    real = torch.ones(2, 4, 3, dtype=torch.bool)
    real[0, 2, 1] = real[1, 1] = real[1, 3, 0] = False  # all slots of one frame are empty
    for row in range(2):
        references, weights = by_hand(layer, x[row], real[row])
        torch.testing.assert_close(layer(x, real)[row], references)
        torch.testing.assert_close(layer.weights(x, real)[row, 1:], weights)
    assert torch.equal(layer.weights(x)[0, 0], torch.eye(3, 4).double())


@pytest.mark.truth("the same clip with the slots of later frames in another order")
@torch.no_grad()
def test_the_order_of_slots_in_later_frames_changes_no_reference():
    layer, x = made(), clip()
    other = torch.cat([x[:, :1], x[:, 1:, [2, 0, 1]]], 1)
    torch.testing.assert_close(layer(other), layer(x))
    torch.testing.assert_close(
        layer.weights(other)[:, 1:], layer.weights(x)[:, 1:][..., [2, 0, 1, 3]]
    )


def test_a_first_frame_with_a_gap_is_refused():
    real = torch.ones(2, 4, 3, dtype=torch.bool)
    real[1, 0, 2] = False
    with pytest.raises(InputError, match="no gap in the first frame"):
        made()(clip(), real)
