"""Unknown positions are filled from known ones alone, at several scales."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers import PartialConv


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def convolved(x, known, weight, bias):
    """One map, position by position: sums over the known ones, scaled to the whole window."""
    (_, high, wide), half = x.shape, weight.shape[-1] // 2
    y, new = torch.zeros_like(x), torch.zeros_like(known)
    for i in range(high):
        for j in range(wide):
            near = [
                (a, b)
                for a in range(max(0, i - half), min(high, i + half + 1))
                for b in range(max(0, j - half), min(wide, j + half + 1))
                if known[a, b]
            ]
            if near:
                new[i, j] = True
                read = sum(weight[:, :, a - i + half, b - j + half] @ x[:, a, b] for a, b in near)
                y[:, i, j] = read * weight.shape[-1] ** 2 / len(near) + bias
    return y, new


@pytest.mark.truth("loops over positions, in the words of the definition")
def test_values():
    layer, x = filled(PartialConv(2, kernels=(3, 5), depth=2)), draw(1, 2, 6, 7)
    known = draw(6, 7, seed=1) > 1.0
    streams = []
    for first, second in layer.streams:
        y, grown = convolved(x[0], known, first.weight, first.bias)
        streams.append(convolved(y.relu(), grown, second.weight, second.bias)[0])
    expected = x[0] + torch.einsum("oc,chw->ohw", layer.out.weight[:, :, 0, 0], torch.cat(streams))
    assert not known.all()
    torch.testing.assert_close(layer(x, known[None, None])[0], expected)


def test_unknown_values_are_not_read():
    layer, x, known = filled(PartialConv(3)), draw(2, 3, 9, 8), draw(2, 1, 9, 8, seed=1) > 0
    other = torch.where(known, x, float("nan"))
    read = (layer(x, known) - x, layer(other, known) - other)
    here = known.expand_as(x)
    torch.testing.assert_close(read[0][here], read[1][here])
    nothing = layer(x, torch.zeros_like(known))
    torch.testing.assert_close(nothing, x)


def test_refuses():
    with pytest.raises(InputError, match="odd kernels, got 2, 1 and "):
        PartialConv(2, kernels=(4,), depth=1)
    with pytest.raises(ShapeError, match="is_known as"):
        PartialConv(2)(draw(1, 2, 4, 4).float(), torch.ones(1, 2, 4, 4, dtype=torch.bool))
