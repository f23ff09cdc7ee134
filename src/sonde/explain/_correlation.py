"""Similarity of two maps over the same positions, for each example."""

import torch
from jaxtyping import Float
from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from torch.nn.functional import avg_pool2d

Maps = Float[Tensor, "row place"]
WINDOW = 7


def pearson(a: Maps, b: Maps) -> Float[Tensor, "row"]:
    """Return the correlation over positions.

    If a map is constant, the correlation is 1 for equal maps and 0 for all others.
    """
    a, b = (x.double() for x in (a, b))
    is_flat = _spread(a) == 0, _spread(b) == 0
    x, y = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    below = x.norm(dim=1) * y.norm(dim=1)
    correlation = (x * y).sum(1) / torch.where(below > 0, below, 1.0)
    is_same = (a == b).all(1).double()
    return torch.where(is_flat[0] | is_flat[1], is_same, correlation)


def spearman(a: Maps, b: Maps) -> Float[Tensor, "row"]:
    """Return the correlation of the ranks over positions; equal entries share their mean rank."""
    ranks = [torch.from_numpy(rankdata(x.cpu().numpy(), axis=1)) for x in (a, b)]
    return pearson(ranks[0], ranks[1])


def ssim(
    a: Float[Tensor, "row height width"], b: Float[Tensor, "row height width"]
) -> Float[Tensor, "row"]:
    """Return the mean structural similarity of two images, each scaled to a maximum of 1.

    Over windows of 7 x 7 pixels of equal weight, or as large as the picture.
    """
    size = min(WINDOW, *a.shape[1:])
    x, y = (_scaled(one.double()).unsqueeze(1) for one in (a, b))
    mean_x, mean_y, xx, yy, xy = (
        avg_pool2d(one, size, stride=1) for one in (x, y, x * x, y * y, x * y)
    )
    var_x, var_y, both = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of a range from -1 to 1
    above = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return (above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def _spread(x: Maps) -> Float[Tensor, "row"]:
    return x.amax(1) - x.amin(1)


def _scaled(x: Float[Tensor, "row height width"]) -> Float[Tensor, "row height width"]:
    return x / x.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
