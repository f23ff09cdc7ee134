"""A convolution over sorted values, whose output returns to the positions of the values."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from sonde.core.errors import InputError, ShapeError
from sonde.layers import RangeConvolution


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(**given):
    layer = RangeConvolution(**given).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def convolved(layer, grid):
    """Return the sum over channels and over a zero-padded neighbourhood, number by number."""
    dim, high, wide = grid.shape
    weight, bias = layer.mix.weight[:, :, 0, 0], layer.mix.bias
    mixed = torch.zeros_like(grid)
    for o in range(dim):
        mixed[o] = bias[o] + sum(weight[o, c] * grid[c] for c in range(dim))
    k, found = layer.near.kernel_size[0], torch.zeros_like(grid)
    for o in range(dim):
        for i in range(high):
            for j in range(wide):
                found[o, i, j] = layer.near.bias[o]
                for a in range(k):
                    for b in range(k):
                        down, right = i + a - k // 2, j + b - k // 2
                        if 0 <= down < high and 0 <= right < wide:
                            found[o, i, j] += layer.near.weight[o, 0, a, b] * mixed[o, down, right]
    return found


def by_hand(layer, x, key, n):
    """Return the layer's output for one map, with Python's sort of lists of positions."""
    _, high, wide = x.shape
    grid, origin = x.clone(), {}
    for c in range(n):
        columns = [sorted(range(high), key=lambda i, c=c, j=j: key[c, i, j]) for j in range(wide)]
        for i in range(high):
            line = [(columns[j][i], j) for j in range(wide)]
            line.sort(key=lambda at, c=c: key[c][at])
            for j, at in enumerate(line):
                grid[c, i, j], origin[c, i, j] = x[c][at], at
    made = convolved(layer, grid)
    wanted = x + made
    for c in range(n):
        for i in range(high):
            for j in range(wide):
                at = origin[c, i, j]
                wanted[c][at] = x[c][at] + made[c, i, j]
    return wanted


@pytest.mark.truth("Python's sort and sums, number by number")
@pytest.mark.parametrize(("kernel", "part", "n"), [(3, 0.5, 2), (3, 1.0, 4), (5, 0.25, 1)])
def test_sorted_convolved_and_put_back(kernel, part, n):
    layer, x = filled(dim=4, kernel=kernel, sorted_part=part), draw(2, 4, 5, 6)
    key = draw(2, n, 5, 6, seed=1)
    with torch.no_grad():
        for found, given in ((layer(x), x), (layer(x, key), key)):
            wanted = [by_hand(layer, x[r], given[r], n) for r in range(2)]
            torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.truth("symmetry: sorting forgets where in a column a value stood, and which column")
def test_it_moves_with_permuted_pixels():
    layer, x, generator = filled(dim=3, sorted_part=1.0), draw(2, 3, 5, 6), torch.Generator()
    inside = torch.rand(2, 3, 5, 6, generator=generator.manual_seed(2)).argsort(2)
    columns = torch.randperm(6, generator=generator)
    moved = x.gather(2, inside)[..., columns]
    # the channels of one pixel part ways: each is sorted by itself
    torch.testing.assert_close(layer(moved), layer(x).gather(2, inside)[..., columns])
    half = filled(dim=4)
    rows = torch.randperm(5, generator=generator)
    y = draw(1, 4, 5, 6, seed=3)
    assert not torch.allclose(half(y[:, :, rows]), half(y)[:, :, rows])


@pytest.mark.truth("torch's convolution, where nothing is sorted or values already ascend")
def test_relations():
    layer, x = filled(dim=4, sorted_part=0.0), draw(2, 4, 5, 6)

    def plain(given):
        mixed = conv2d(given, layer.mix.weight, layer.mix.bias)
        return given + conv2d(mixed, layer.near.weight, layer.near.bias, padding=1, groups=4)

    torch.testing.assert_close(layer(x), plain(x))
    ascending = x.sort(2).values.sort(3).values
    whole = filled(dim=4, sorted_part=1.0)
    torch.testing.assert_close(whole(ascending), plain(ascending))
    torch.testing.assert_close(whole(x).sum((2, 3)), whole(ascending).sum((2, 3)))
    assert layer.n_parameters == whole.n_parameters == 4 * 4 + 4 * 9 + 2 * 4


@pytest.mark.truth("finite differences: the order is constant, the values are not")
def test_gradient():
    layer = filled(dim=2, kernel=3, sorted_part=0.5)
    assert torch.autograd.gradcheck(layer, draw(1, 2, 3, 4).requires_grad_())


def test_errors_name_values():
    with pytest.raises(InputError, match=r"4 and 0\.5"):
        RangeConvolution(4, kernel=4)
    with pytest.raises(InputError, match=r"3 and 1\.5"):
        RangeConvolution(4, sorted_part=1.5)
    with pytest.raises(ShapeError, match=r"\(2, 2, 5, 6\), like the sorted channels"):
        RangeConvolution(4)(torch.zeros(2, 4, 5, 6), torch.zeros(2, 4, 5, 6))
