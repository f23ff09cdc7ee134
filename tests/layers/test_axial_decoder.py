"""Contexts of pixels that see all pixels before them."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import AxialDecoder

HIGH, WIDE, DIM = 3, 4, 4


def made(depth=1):
    """A layer whose weights are all drawn, those that begin as zeros too."""
    draw = torch.Generator().manual_seed(depth)
    layer = AxialDecoder(DIM, (HIGH, WIDE), heads=2, depth=depth).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5, generator=draw)
    return layer


def states(n=2):
    return torch.randn(n, HIGH * WIDE, DIM, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(9))  # fmt: skip


@pytest.mark.truth("the derivative of every context by every token")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_context_depends_on_all_tokens_before_it_and_on_no_other(depth):
    layer = made(depth)
    slope = torch.autograd.functional.jacobian(lambda x: layer(x).sum(2), states(1))
    reached = slope.abs().amax(-1)[0, :, 0] > 1e-9
    assert torch.equal(reached, torch.ones(HIGH * WIDE, HIGH * WIDE).tril(-1).bool())


@pytest.mark.truth("the whole layer, run again for every token")
def test_decoding_row_by_row_is_decoding_token_by_token():
    layer, n, calls = made(), 2, []
    layer.outer.register_forward_hook(lambda *_: calls.append(1))
    noise = states(n)

    def draw(context, token):
        return (context.roll(1, 1) + noise[:, token]).tanh()

    found = layer.decode(n, draw)
    assert len(calls) == HIGH  # a row at a time
    x = torch.zeros(n, HIGH * WIDE, DIM, dtype=torch.float64)
    with torch.no_grad():
        for token in range(HIGH * WIDE):
            x[:, token] = draw(layer(x)[:, token], token)
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_an_empty_grid_is_refused():
    with pytest.raises(InputError, match=r"at least 1, got depth=1 and grid=\(0, 3\)"):
        AxialDecoder(4, (0, 3))
