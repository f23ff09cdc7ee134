"""One mixing map, with its weights shared in six ways."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers import GridMixer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


@pytest.mark.truth("counts printed in the handbook")
def test_counts():
    per_channel = {
        kind: GridMixer(2, kind, grid=(14, 14)).n_parameters / 2
        for kind in ("full", "local", "shared")
    }
    assert per_channel == {"full": 38416.0, "local": 1764.0, "shared": 9.0}
    assert GridMixer(2, "axis", grid=(14, 14), hidden=False).n_parameters == 392


@pytest.mark.truth("each kind as a full matrix, column by column")
def test_every_linear_kind_is_a_full_matrix():
    high, wide = 4, 5
    basis = torch.eye(20).double().reshape(20, 1, high, wide).expand(-1, 2, -1, -1)
    x = draw(3, 2, high, wide)
    for kind in ("local", "shared", "axis"):
        grid = None if kind == "shared" else (high, wide)
        layer = filled(GridMixer(2, kind, grid=grid, hidden=False))
        columns = (layer(basis) - basis).flatten(2)
        full = filled(GridMixer(2, "full", grid=(high, wide)))
        with torch.no_grad():
            full.map.copy_(columns.permute(1, 2, 0))
        torch.testing.assert_close(full(x), layer(x))


@pytest.mark.truth("closed form: local with tied weights is a convolution, axis is A X B'")
def test_relations():
    x = draw(3, 2, 4, 5)
    shared, local = filled(GridMixer(2)), GridMixer(2, "local", grid=(4, 5)).double()
    with torch.no_grad():
        local.map.copy_(shared.map.reshape(2, 1, 9).expand(-1, 20, -1))
    torch.testing.assert_close(local(x), shared(x))
    axis = filled(GridMixer(2, "axis", grid=(4, 5), hidden=False))
    a, b = (line.weight for line in axis.lines)
    torch.testing.assert_close(axis(x), x + a @ x @ b.T)
    with pytest.raises(ShapeError, match="high=4 wide=5"):
        local(draw(3, 2, 5, 5))


@pytest.mark.truth("networks run on each column and row by hand")
def test_rafts_of_channels():
    layer, x = filled(GridMixer(4, "axis", grid=(3, 2), raft=2)), draw(1, 4, 3, 2)
    normed = layer.norms[0](x.movedim(1, -1)).movedim(-1, 1)
    first = x.clone()
    for g in (0, 2):
        for column in range(2):
            given = normed[0, g : g + 2, :, column].reshape(-1)
            first[0, g : g + 2, :, column] += layer.lines[0](given).reshape(2, 3)
    normed, wanted = layer.norms[1](first.movedim(1, -1)).movedim(-1, 1), first.clone()
    for g in (0, 2):
        for row in range(3):
            given = normed[0, g : g + 2, row].reshape(-1)
            wanted[0, g : g + 2, row] += layer.lines[1](given).reshape(2, 2)
    torch.testing.assert_close(layer(x), wanted)
    assert GridMixer(4, "axis", grid=(3, 2))(torch.randn(1, 4, 6, 7)).shape == (1, 4, 6, 7)


@pytest.mark.truth("a direct sum over positions")
def test_generated():
    layer, x = filled(GridMixer(2, "generated", grid=(4, 5))), draw(2, 2, 4, 5)
    kernel = layer.generated() * x
    wanted = torch.zeros_like(x)
    for i in range(4):
        for j in range(5):
            for a in range(4):
                for b in range(5):
                    down, right = i + 2 - a, j + 2 - b
                    if 0 <= down < 4 and 0 <= right < 5:
                        wanted[:, :, i, j] += kernel[:, :, a, b] * x[:, :, down, right]
    torch.testing.assert_close(layer.convolved(x), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.convolved(-3.0 * x), 9.0 * wanted)
    rms = wanted.square().mean((2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(layer(x), x + layer.scale * wanted / rms)


@pytest.mark.truth("the two branches by hand")
def test_dilated():
    layer, x = filled(GridMixer(4, "dilated")), draw(2, 4, 7, 6)
    y = layer.inner(x + layer.gamma * (x - x.flatten(2).mean(2)[:, :, None, None]))
    near, far = layer.near(y), layer.far[1](layer.far[0](y))
    gates = [
        torch.sigmoid(s(p.flatten(2).mean(2)))
        for s, p in zip(layer.squeeze, (near, far), strict=True)
    ]
    joined = torch.cat(
        [g[:, :, None, None] * p for g, p in zip(gates, (near, far), strict=True)], 1
    )
    mixed = torch.einsum("oc,rchw->rohw", layer.out.weight[:, :, 0, 0], joined)
    torch.testing.assert_close(layer(x), x + mixed)
    seen = torch.autograd.functional.jacobian(
        lambda z: layer.far(z)[0, 0, 8, 8], draw(1, 2, 17, 17)
    )
    assert [int(v) for v in seen[0, 0].abs().sum(0).nonzero().flatten()] == [4, 6, 8, 10, 12]
    with pytest.raises(InputError, match="grid="):
        GridMixer(4, "full")
