"""A denoiser over patches: its places, by loops over pixels."""

import pytest
import torch
from torch import nn

from sonde_studies._token_denoiser import TokenDenoiser


@pytest.mark.truth("loops over pixels, without blocks")
def test_coarse_places_return_to_the_pixels_that_they_are_means_of():
    draw = torch.Generator().manual_seed(3)
    x, t = torch.randn(3, 64, generator=draw), torch.rand(3, 1, generator=draw)
    net = TokenDenoiser()
    net.first = net.middle = net.last = nn.Identity()
    with torch.no_grad():
        net.places.zero_()
        for layer in (net.enter, net.leave):
            layer.weight.zero_()
            layer.weight.fill_diagonal_(1.0)
            layer.bias.zero_()
        found = net(x, t, x).unflatten(1, (8, 8))
    image = x.unflatten(1, (8, 8))
    for row in range(8):
        for column in range(8):
            i, j = row // 4 * 4 + row % 2, column // 4 * 4 + column % 2
            coarse = image[:, i : i + 3 : 2, j : j + 3 : 2].mean((1, 2))
            torch.testing.assert_close(found[:, row, column], image[:, row, column] + coarse)
