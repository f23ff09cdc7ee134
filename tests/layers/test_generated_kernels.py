"""Kernels made of coordinates, their branches and their bottleneck."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers import GeneratedKernels, GridMixer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def unit(y):
    return y / y.square().mean((2, 3), keepdim=True).sqrt()


@pytest.mark.truth("a direct sum over positions, and GridMixer with the same slow network")
def test_grid_branch():
    layer, x = filled(GeneratedKernels(2, (4, 5))), draw(2, 2, 4, 5)
    kernel, wanted = layer.generated() * x, torch.zeros_like(x)
    for i in range(4):
        for j in range(5):
            for a in range(4):
                for b in range(5):
                    down, right = i + 2 - a, j + 2 - b
                    if 0 <= down < 4 and 0 <= right < 5:
                        wanted[:, :, i, j] += kernel[:, :, a, b] * x[:, :, down, right]
    torch.testing.assert_close(layer.branch("grid", x), unit(wanted))
    mixer = filled(GridMixer(2, "generated", grid=(4, 5)))
    mixer.first.load_state_dict(layer.first.state_dict())
    mixer.last.load_state_dict(layer.last.state_dict())
    torch.testing.assert_close(mixer.generated(), layer.generated())
    torch.testing.assert_close(mixer(x), x + mixer.scale * layer.branch("grid", x))


@pytest.mark.truth("the kernel entry by entry, and a direct sum over a window")
def test_near_branch():
    layer, x = filled(GeneratedKernels(2, (6, 9), kernel=3, coordinate_width=5)), draw(2, 2, 6, 9)
    kernel = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    for r in range(2):
        for a in range(3):
            for b in range(3):
                cell = x[r, :, 2 * a : 2 * a + 2, 3 * b : 3 * b + 3].flatten(1).mean(1)
                place = torch.tensor([a - 1.0, b - 1.0], dtype=torch.float64)
                hidden = torch.sin(layer.first.weight @ place + layer.first.bias)
                hidden = hidden * (1.0 + layer.context.weight @ cell + layer.context.bias)
                kernel[r, :, a, b] = layer.near_last.weight @ hidden + layer.near_last.bias
    torch.testing.assert_close(layer.near(x), kernel)
    wanted = torch.zeros_like(x)
    for i in range(6):
        for j in range(9):
            for a in range(3):
                for b in range(3):
                    down, right = i + a - 1, j + b - 1
                    if 0 <= down < 6 and 0 <= right < 9:
                        wanted[:, :, i, j] += kernel[:, :, a, b] * x[:, :, down, right]
    torch.testing.assert_close(layer.branch("near", x), unit(wanted))


@pytest.mark.truth("three branches, their bottleneck and its nonlinearity by hand")
def test_block():
    layer, x = filled(GeneratedKernels(3, (4, 5))), draw(2, 3, 4, 5)
    made = [layer.branch("grid", x), layer.branch("near", x)]
    gate = 1.0 / (1.0 + torch.exp(-layer.generated() * x * x))
    torch.testing.assert_close(layer.branch("product", x), unit(x * gate))
    joined = torch.cat([*made, unit(x * gate)], 1)
    joined = torch.einsum("oc,rchw->rohw", layer.join.weight[:, :, 0, 0], joined)
    joined = unit(joined + layer.join.bias[:, None, None])
    wanted = x + layer.scale * joined / (1.0 + torch.exp(-joined))
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.truth("three branches, their bottleneck and its nonlinearity by hand")
def test_a_block_without_a_residual_connection_is_its_branches_alone():
    torch.manual_seed(3)
    layer, x = GeneratedKernels(3, (4, 5), residual=False).double(), draw(2, 3, 4, 5)
    joined = torch.cat([layer.branch(b, x) for b in ("grid", "near", "product")], 1)
    joined = torch.einsum("oc,rchw->rohw", layer.join.weight[:, :, 0, 0], joined)
    joined = unit(joined + layer.join.bias[:, None, None])
    torch.testing.assert_close(layer(x), joined / (1.0 + torch.exp(-joined)))
    added = GeneratedKernels(3, (4, 5)).double()
    added.load_state_dict(layer.state_dict())
    torch.testing.assert_close(added(x), x + layer(x))
    assert added.insertable
    assert not layer.insertable


@pytest.mark.truth("the mean of squared differences of kernels, and its gradient in closed form")
def test_slow_error():
    first, second = filled(GeneratedKernels(2, (4, 5))), filled(GeneratedKernels(4, (4, 5)))
    second.last.weight.data.add_(draw(4, 16, seed=7))
    a, b = first.generated(), second.generated()
    gaps = [
        (a[c % 2, i, j].item() - b[c, i, j].item()) ** 2
        for c in range(4)
        for i in range(4)
        for j in range(5)
    ]
    error = first.slow_error(second)
    assert error.item() == pytest.approx(sum(gaps) / 80)
    error.backward()
    grad = -2.0 * (torch.cat([a, a]) - b).sum((1, 2)) / 80
    torch.testing.assert_close(second.last.bias.grad, grad.detach())
    assert all(
        p.grad is None for n, p in second.named_parameters() if n.startswith(("join", "near"))
    )


def test_the_kernel_of_the_grid_knows_coordinates_alone_and_the_near_one_its_row():
    layer, x = filled(GeneratedKernels(2, (4, 5))), draw(3, 2, 4, 5)
    assert layer.generated().shape == (2, 4, 5)
    near = layer.near(x)
    torch.testing.assert_close(layer.near(x[1:2]), near[1:2])
    assert (near[0] - near[1]).abs().max().item() > 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="branches of grid, near, product"):
        GeneratedKernels(2, (4, 5), branches=())
    near, whole = GeneratedKernels(2, (4, 5), branches=("near",)), GeneratedKernels(2, (4, 5))
    with pytest.raises(InputError, match="'near' alone"):
        near.generated()
    with pytest.raises(InputError, match="multiple of 2 channels"):
        whole.slow_error(GeneratedKernels(3, (4, 5)))
    with pytest.raises(ShapeError, match="high=4 wide=5"):
        whole(torch.zeros(1, 2, 5, 5))
