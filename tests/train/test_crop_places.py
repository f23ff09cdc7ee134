"""Places of tokens of crops: counted by hand, and a picture of its own coordinates."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, normalize

from sonde.core import InputError
from sonde.train import Contrast, crop_places


@pytest.mark.truth("centres and diagonals by hand, of one crop and of a larger mirrored one")
def test_centres_by_hand():
    # tokens of 3 x 4 pixels (diagonal 5), and of 6 x 8 (diagonal 10), from right to left
    boxes = torch.tensor([[[1.0, 2.0, 7.0, 14.0]], [[0.0, 24.0, 12.0, 0.0]]])
    found = crop_places(boxes, (2, 3), prefix=1)
    wanted = [[(2.5, 4), (2.5, 8), (2.5, 12), (5.5, 4), (5.5, 8), (5.5, 12)],
              [(3, 20), (3, 12), (3, 4), (9, 20), (9, 12), (9, 4)]]  # fmt: skip
    assert bool(found[:, :, 0].isnan().all())
    torch.testing.assert_close(found[:, 0, 1:], torch.tensor(wanted) / 10)
    alone = crop_places(boxes[:1], (2, 3))
    torch.testing.assert_close(alone[0, 0], torch.tensor(wanted[0]) / 5)


@pytest.mark.truth("means of a picture whose pixels hold their own line and column")
def test_places_are_those_of_the_pixels():
    pixels = (
        torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")) + 0.5
    )
    edges = [(3, 5, 19, 29), (8, 0, 32, 12), (0, 16, 8, 40)]
    boxes = torch.tensor([edges, edges[::-1]], dtype=torch.float32)
    found = crop_places(boxes, (4, 2))
    for view, crops in enumerate((edges, edges[::-1])):
        for image, (top, left, bottom, right) in enumerate(crops):
            high, wide = (bottom - top) // 4, (right - left) // 2
            means = avg_pool2d(pixels[:, top:bottom, left:right], (high, wide))
            other = (edges, edges[::-1])[1 - view][image]
            both = ((high, wide), ((other[2] - other[0]) / 4, (other[3] - other[1]) / 2))
            unit = max((h**2 + w**2) ** 0.5 for h, w in both)
            torch.testing.assert_close(found[view, image], means.flatten(1).T / unit)


@pytest.mark.truth("pairs of overlapping tokens, counted by hand")
def test_contrast_takes_overlapping_tokens_of_other_crops():
    """The right half of a crop is the left half of another; narrow tokens lie in it."""
    boxes = torch.tensor(
        [[[0.0, 0.0, 4.0, 8.0]] * 2, [[0.0, 4.0, 4.0, 12.0], [0.0, 6.0, 4.0, 8.0]]]
    )
    place = crop_places(boxes, (1, 2), prefix=1)
    view, image = (torch.arange(2)[:, None, None], torch.arange(2)[None, :, None])
    columns = {"place": place.flatten(0, 2), "group": view.expand(2, 2, 3).flatten(),
               "label": image.expand(2, 2, 3).flatten()}  # fmt: skip
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    u = normalize(x, dim=1).unflatten(0, (2, 2, 3))
    of_first = -2 * (u[0, 0, 2] @ u[1, 0, 1])
    right, left, second = u[0, 1, 2], u[1, 1, 1], u[1, 1, 2]
    # rows: two of the first image, then the wide token with two narrow ones, and each of those
    of_second = -2 * torch.stack([right @ (left + second) / 2, right @ left, right @ second])
    wanted = torch.cat([of_first[None], of_first[None], of_second]).mean()
    torch.testing.assert_close(Contrast(1.0, "none")(x, **columns), wanted)


def test_an_empty_crop_is_refused():
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 8.0], [1.0, 2.0, 1.0, 9.0]]])
    with pytest.raises(InputError, match=r"got grid=\(2, 2\), prefix=0 and 1 empty crops"):
        crop_places(boxes, (2, 2))
