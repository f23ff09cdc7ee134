"""Singular values of convolutions against the operator written out as a matrix."""

import pytest
import torch
from torch.nn.functional import conv2d, pad

from sonde.core import InputError
from sonde.measure import isometry_error
from sonde.train import Orthogonal


def operator(kernel, side, stride=1):
    """Return the matrix of a convolution with circular padding, from what it makes of each unit."""
    n = kernel.shape[1] * side**2
    units = torch.eye(n, dtype=kernel.dtype).reshape(n, kernel.shape[1], side, side)
    wide = pad(units, (0, kernel.shape[3] - 1, 0, kernel.shape[2] - 1), mode="circular")
    return conv2d(wide, kernel, stride=stride).flatten(1).T


@pytest.mark.truth("singular values of the explicit matrix")
@pytest.mark.parametrize(("shape", "stride"), [((3, 4, 3, 3), 1), ((5, 2, 3, 2), 2)])
def test_singular_values_of_the_matrix(shape, stride):
    draw = torch.Generator().manual_seed(0)
    kernel = torch.randn(shape, generator=draw, dtype=torch.float64)
    expected = torch.linalg.svdvals(operator(kernel, 6, stride))
    found = isometry_error(kernel, 6, stride)
    torch.testing.assert_close(found.singular.flatten().sort(descending=True).values, expected)
    gap = (expected - 1).abs().max()
    assert found.value == pytest.approx(float(gap))
    assert (found.smallest, found.largest) == pytest.approx(
        (float(expected[-1]), float(expected[0]))
    )


def test_a_shift_is_an_isometry_and_the_side_is_needed():
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[0, 1, 0, 2] = kernel[1, 0, 1, 1] = 1
    assert isometry_error(kernel, 5).value == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="at least 3 and a multiple of stride=2, got 5"):
        isometry_error(kernel, 5, 2)
    for tall in (torch.ones(1, 1, 3, 2), torch.ones(1, 1, 2, 3)):
        with pytest.raises(InputError, match="at least 3 and a multiple of stride=1, got 2"):
            isometry_error(tall, 2)


def test_kernels_that_the_penalty_makes_isometric_stay_so_on_pictures_of_any_side():
    draw, penalty = torch.Generator().manual_seed(3), Orthogonal()
    kernel = (0.3 * torch.randn(3, 4, 3, 3, generator=draw)).requires_grad_()
    optimiser = torch.optim.Adam([kernel], lr=3e-2)
    for _ in range(150):
        optimiser.zero_grad()
        penalty(kernel).backward()
        optimiser.step()
    errors = [isometry_error(kernel.detach(), side).value for side in (4, 8, 16, 32, 64)]
    assert errors == sorted(errors)  # the frequencies of a side are among those of twice the side
    assert errors[-1] < 0.15
    assert errors[-1] == pytest.approx(errors[2], rel=0.05)
