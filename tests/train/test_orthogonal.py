"""Weights of isometries: the operator as a matrix, and shapes that have none."""

import pytest
import torch

from measure.test_isometry_error import operator
from sonde.core import InputError
from sonde.measure import isometry_error
from sonde.train import Orthogonal


def kernel(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("the circular convolution as an explicit matrix")
@pytest.mark.parametrize(
    ("shape", "stride"),
    [((3, 4, 3, 3), 1), ((5, 2, 3, 3), 1), ((3, 2, 3, 3), 2), ((9, 2, 2, 2), 2), ((2, 3, 4, 4), 3)],
)
def test_the_penalty_is_that_of_the_matrix(shape, stride):
    k, side = kernel(*shape), 12
    matrix = operator(k, side, stride)
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    gap = wide @ wide.T - torch.eye(len(wide), dtype=torch.float64)
    places = (side // stride) ** 2
    assert float(Orthogonal(stride)(k)) * places == pytest.approx(float(gap.square().sum()))


@pytest.mark.truth("existence of orthogonal convolutions by shape, achour2022existence")
@pytest.mark.parametrize(
    ("shape", "stride", "exists"),
    [((2, 2, 1, 1), 1, True), ((4, 1, 2, 2), 2, True), ((4, 1, 1, 1), 2, False)],
)
def test_descent_ends_where_the_shape_allows(shape, stride, exists):
    k = kernel(*shape, seed=3).requires_grad_()
    loss = Orthogonal(stride)
    solver = torch.optim.LBFGS([k], max_iter=300, line_search_fn="strong_wolfe")

    def value():
        solver.zero_grad()
        found = loss(k)
        found.backward()
        return found

    solver.step(value)
    side = 2 * stride
    assert (isometry_error(k, side, stride).value < 1e-4) == exists


def test_linear_layers_and_other_shapes():
    turn = torch.linalg.qr(kernel(4, 4))[0]
    loss = Orthogonal()
    assert float(loss(turn[:3])) == pytest.approx(0, abs=1e-25)
    assert float(loss(turn[:, :3] * 2)) == pytest.approx(27)  # three squares of 4 - 1
    with pytest.raises(InputError, match=r"got shape \(2, 3, 5\)"):
        loss(kernel(2, 3, 5))
    with pytest.raises(InputError, match=r"got shape \(2, 3, 5, 4\)"):
        loss(kernel(2, 3, 5, 4))
