import pytest
import torch

from sonde.core.errors import InputError
from sonde.stats import neighbour_average


def _rows(n, height, width, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.arange(height * width)
    grid = torch.stack([cells // width, cells % width], 1).repeat(n, 1)
    x = torch.randn(n * height * width, dim, dtype=torch.float64, generator=generator)
    return x, grid, torch.arange(n).repeat_interleave(height * width)


@pytest.mark.truth("torch.nn.functional.avg_pool2d that leaves padding out")
@pytest.mark.parametrize("window", [3, 5])
def test_equals_pooling_in_any_order(window):
    x, grid, example = _rows(4, 5, 6)
    images = x.reshape(4, 5, 6, 3).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.avg_pool2d(images, window, 1, window // 2, count_include_pad=False)
    want = pooled.permute(0, 2, 3, 1).reshape(-1, 3)
    order = torch.randperm(len(x))
    found = neighbour_average(x[order], grid[order], 10 * example[order] - 7, window)
    torch.testing.assert_close(found, want[order], rtol=0, atol=1e-12)


@pytest.mark.truth("the mean over patches at most one apart, by loops")
def test_patches_that_are_left_out_do_not_count():
    x, grid, example = _rows(2, 4, 4)
    keep = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:20]
    x, grid, example = x[keep], grid[keep], example[keep]
    near = (grid[:, None] - grid[None]).abs().amax(2) <= 1
    near &= example[:, None] == example[None]
    want = torch.stack([x[mask].mean(0) for mask in near])
    torch.testing.assert_close(neighbour_average(x, grid, example), want)


def test_a_window_of_one_changes_nothing():
    x, grid, example = _rows(1, 2, 2)
    assert torch.equal(neighbour_average(x, grid, example, 1), x)


def test_refuses_even_windows_and_places_taken_twice():
    x, grid, example = _rows(2, 2, 2)
    with pytest.raises(InputError, match="odd window, got 2"):
        neighbour_average(x, grid, example, 2)
    with pytest.raises(InputError, match="a position twice"):
        neighbour_average(x, grid, example * 0)
