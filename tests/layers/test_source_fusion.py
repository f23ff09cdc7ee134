"""``SourceFusion``: values by hand, and gradients that reach every encoder."""

import numpy as np
import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers import SourceFusion


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(widths, dim, rebuilds=()):
    layer = SourceFusion(widths, dim, rebuilds).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def affine(part, x):
    return x @ part.weight.detach().numpy().T + part.bias.detach().numpy()


@pytest.mark.truth("codes, state and error by numpy, a source at a time")
def test_state_and_rebuild_loss():
    layer = made((4, 3, 2), 5, (6, 2))
    x = [drawn(7, n, seed=n) for n in (4, 3, 2)]
    codes = [np.maximum(affine(m, s.numpy()), 0) for m, s in zip(layer.maps, x, strict=True)]
    state = np.maximum(affine(layer.join, np.concatenate(codes, 1)), 0)
    found = layer(*x)
    np.testing.assert_allclose(found.detach(), state)
    read = [drawn(7, 6, seed=8), drawn(7, 2, seed=9)]
    errors = [
        np.mean((affine(part, state) - r.numpy()) ** 2)
        for part, r in zip(layer.back, read, strict=True)
    ]
    np.testing.assert_allclose(layer.rebuild_loss(found, *read).detach(), np.mean(errors))


def test_encoders_learn_with_the_fusion_and_numbers_take_part():
    encoder, layer = nn.Linear(3, 4).double(), made((4, 2), 5, (3,))
    x, numbers = drawn(6, 3), drawn(6, 2, seed=1).requires_grad_()
    state = layer(encoder(x), numbers)
    (state.sum() + layer.rebuild_loss(state, x)).backward()
    assert float(encoder.weight.grad.abs().max()) > 0
    assert float(numbers.grad.abs().max()) > 0


def test_other_sources_than_those_of_the_widths_are_refused():
    layer = made((4, 2), 5)
    with pytest.raises(ShapeError, match="expected 2 sources of widths"):
        layer(drawn(6, 4))
    with pytest.raises(InputError, match="with rebuilds, got none"):
        layer.rebuild_loss(drawn(6, 5), drawn(6, 4))
    with pytest.raises(ShapeError, match=r"inputs of widths \(3,\), got \(4,\)"):
        made((4, 2), 5, (3,)).rebuild_loss(drawn(6, 5), drawn(6, 4))
    with pytest.raises(InputError, match="at least one source"):
        SourceFusion((), 3)
