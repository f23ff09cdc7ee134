"""Grids between the extremes of channels."""

import pytest
import torch

from sonde.compress import ScalarCodec
from sonde.core import InputError


def rows(n=400):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=draw) * torch.tensor([0.01, 2.0, 30.0]) + 5.0


@pytest.mark.truth("rounding of each channel by hand, in numpy's words")
def test_values_are_those_of_the_grid():
    x = rows()
    found = ScalarCodec(bits=3).decode(ScalarCodec(bits=3).encode(x)).double()
    for c in range(3):
        column = x[:, c].double()
        low, high = column.min(), column.max()
        grid = torch.linspace(float(low), float(high), 8, dtype=torch.float64)
        nearest = grid[(column[:, None] - grid).abs().argmin(1)]
        torch.testing.assert_close(found[:, c], nearest, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("entries in the middle between two values of the grid")
def test_the_most_that_is_lost_is_reached():
    x = torch.full((100, 2), 2.5)
    x[0], x[1] = 0.0, 7.0
    x *= torch.tensor([1.0, 4.0])
    lost = float((ScalarCodec(bits=3).decode(ScalarCodec(bits=3).encode(x)) - x).square().sum())
    most = ScalarCodec(bits=3).most_lost(x) * float(x.square().sum())
    assert lost == pytest.approx(0.98 * most)  # the two extremes lose nothing


@pytest.mark.truth("the entropy of the codes")
def test_codes_take_their_entropy_where_that_is_less():
    x = torch.zeros(4000, 2)
    x[::40, 0], x[0, 1] = 1.0, 1.0
    stream = ScalarCodec(bits=4).encode(x)
    p = 101 / 8000
    p = torch.tensor([p, 1 - p], dtype=torch.float64)
    n_bytes = float(-(p * p.log2()).sum()) * 8000 / 8
    assert n_bytes - 1 < len(stream) < n_bytes * 1.01 + 13 + 16 + 40
    dense = ScalarCodec(bits=4).encode(torch.rand(50, 2))
    assert len(dense) == 13 + 5 + 16 + 50  # plain codes are shorter than their table


def test_bits_are_checked():
    with pytest.raises(InputError, match=r"bits in \[1, 8\], got 9"):
        ScalarCodec(bits=9)
