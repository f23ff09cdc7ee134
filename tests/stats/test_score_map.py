import numpy as np
import pytest
import torch
from scipy import ndimage

from sonde.core.errors import InputError
from sonde.stats import score_map


def _grid(height, width):
    cells = torch.arange(height * width)
    return torch.stack([cells // width, cells % width], 1)


def _interpolated(cells, size):
    """Bilinear between cell centres by scipy, half a cell away from the edge."""
    places = [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(cells.shape, size, strict=True)]
    lines, columns = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(cells, [lines, columns], order=1, mode="nearest")


@pytest.mark.truth("scipy.ndimage.map_coordinates of order 1")
@pytest.mark.parametrize(
    ("shape", "size"), [((4, 4), (32, 32)), ((3, 5), (10, 17)), ((1, 2), (7, 2))]
)
def test_map_is_bilinear_between_centres(shape, size):
    cells = np.random.default_rng(0).normal(size=shape)
    found = score_map(torch.as_tensor(cells).flatten(), _grid(*shape), size)
    np.testing.assert_allclose(found.numpy(), _interpolated(cells, size), atol=1e-12)


@pytest.mark.truth("scipy.ndimage.gaussian_filter after scipy.ndimage.map_coordinates")
@pytest.mark.parametrize("sigma", [0.6, 2.0, 4.0, 30.0])
def test_map_is_smoothed(sigma):
    cells = np.random.default_rng(1).normal(size=(5, 6))
    found = score_map(torch.as_tensor(cells).flatten(), _grid(5, 6), (20, 24), sigma)
    want = ndimage.gaussian_filter(_interpolated(cells, (20, 24)), sigma)
    np.testing.assert_allclose(found.numpy(), want, atol=1e-12)


@pytest.mark.truth("torch.nn.functional.interpolate")
def test_map_equals_torch_in_any_order_of_patches():
    cells, order = torch.randn(7, 7, dtype=torch.float64), torch.randperm(49)
    found = score_map(cells.flatten()[order], _grid(7, 7)[order], (28, 28))
    want = torch.nn.functional.interpolate(cells[None, None], (28, 28), mode="bilinear")[0, 0]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_map_of_the_grid_itself_is_the_grid():
    assert score_map(torch.arange(6.0), _grid(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_infinite_patch_stays_where_it_is():
    scores = torch.zeros(16)
    scores[5] = torch.inf
    found = score_map(scores, _grid(4, 4), (16, 16))
    assert not bool(found.isnan().any())
    assert bool((found[5:7, 5:7] == torch.inf).all())
    assert bool((found[10:, 10:] == 0).all())


def test_what_is_no_grid_is_refused():
    with pytest.raises(InputError, match="2 x 2 grid once, got 3 patches at 3 positions"):
        score_map(torch.zeros(3), _grid(2, 2)[:3])
    with pytest.raises(InputError, match="got 5 patches at 4 positions"):
        score_map(torch.zeros(5), torch.cat([_grid(2, 2), _grid(1, 1)]))
    with pytest.raises(InputError, match="at least the grid's"):
        score_map(torch.zeros(4), _grid(2, 2), (1, 8))
    with pytest.raises(InputError, match="1 NaN"):
        score_map(torch.tensor([0.0, torch.nan]), _grid(1, 2))
    with pytest.raises(InputError, match="at least one patch"):
        score_map(torch.zeros(0), _grid(1, 1)[:0])
