"""Masks of scenes against the images that they show, and overlaps by hand."""

import pytest
import torch
from torch import nn

from sonde_studies._mask_scenes import CELL, Scenes, masked_scenes, overlap


def test_the_mask_is_that_of_the_digit_of_the_highest_class():
    """Each image has its class as brightness, on the left half alone."""
    label = torch.arange(20) % 10
    x = ((1 + label[:, None, None]) / 11 * torch.ones(20, 8, 8)).clone()
    x[:, :, 4:] = 0.01
    scenes = masked_scenes(x.flatten(1), label, 3, 12)
    for picture, mask, kind in zip(*scenes, strict=True):
        cells = [p[0].unfold(0, CELL, CELL).unfold(1, CELL, CELL) for p in (picture, mask)]
        shown = cells[0][..., 0].amax(2)
        own = shown == (1 + kind) / 11
        left = (1 + float(kind)) / 11 > 0.5
        assert float(mask.sum()) == 32 * left
        assert torch.equal(cells[1][..., :4].sum((2, 3)), 32.0 * own * left)


@pytest.mark.truth("intersections and unions of three pairs of masks by hand")
def test_overlap_is_the_mean_of_intersections_over_unions():
    mask = torch.zeros(3, 1, 2, 3)
    mask[0, 0, 0], mask[1, 0, :, 1] = 1.0, 1.0
    said = torch.full((3, 1, 2, 3), -0.5)
    said[0, 0, :, 0], said[1, 0, :, 1] = 0.5, 0.5
    scenes = Scenes(said, mask, torch.zeros(3).long())
    assert overlap(nn.Identity(), scenes) == pytest.approx((1 / 4 + 1 + 0) / 3)
