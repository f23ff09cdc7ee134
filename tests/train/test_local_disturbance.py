"""Warped clips: a ramp of coordinates shows the shift of each pixel."""

import pytest
import torch

from sonde.core import InputError
from sonde.train import local_disturbance


def _drawn(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.truth("a ramp: the value of a pixel is the place that it was taken from")
@pytest.mark.parametrize("over", ["space", "time"])
def test_each_pixel_comes_from_where_the_field_says(over):
    rows, frames, high, wide = 2, 3, 12, 16
    across = (torch.arange(wide) + 0.5) * 2 / wide - 1
    down = (torch.arange(high) + 0.5) * 2 / high - 1
    ramp = torch.stack([across.expand(high, -1), down[:, None].expand(-1, wide)])
    clip = ramp[None, :, None].expand(rows, -1, frames, -1, -1).contiguous()
    found = local_disturbance(clip, over, strength=0.05, cells=3, generator=_drawn())
    fields = 1 if over == "space" else frames
    points = 0.05 * torch.randn(rows, fields, 2, 3, 3, generator=_drawn())
    for row in range(rows):
        for frame in range(frames):
            field = points[row, frame if over == "time" else 0]
            for line, column in ((3, 4), (6, 8), (8, 11)):  # inner pixels
                y, x = line * 2 / (high - 1), column * 2 / (wide - 1)
                top, left = int(y), int(x)
                v, h = y - top, x - left
                corners = field[:, top : top + 2, left : left + 2]
                weights = torch.tensor([[(1 - v) * (1 - h), (1 - v) * h], [v * (1 - h), v * h]])
                wanted = ramp[:, line, column] + (corners * weights).sum((1, 2))
                torch.testing.assert_close(
                    found[row, :, frame, line, column], wanted, atol=1e-5, rtol=0
                )


def test_motion_survives_in_space_and_is_lost_in_time():
    """A moving square: positions of its centre, frame by frame."""
    clip = torch.zeros(40, 1, 4, 24, 24)
    for frame in range(4):
        clip[:, :, frame, 8:14, 3 + 4 * frame : 9 + 4 * frame] = 1.0

    def steps(x):
        at = torch.arange(24.0)
        centre = (x.sum(3) * at).sum(-1) / x.sum((3, 4))
        return centre.diff(dim=-1)

    kept, lost = (
        (steps(local_disturbance(clip, over, 0.12, generator=_drawn(1))) - 4).abs().mean()
        for over in ("space", "time")
    )
    assert 2 * kept < lost


@pytest.mark.parametrize("given", [{"strength": -0.1}, {"cells": 1}])
def test_what_is_refused(given):
    with pytest.raises(InputError, match="expected over as 'space' or 'time'"):
        local_disturbance(torch.zeros(1, 1, 2, 4, 4), **given)


def test_no_clip_is_refused():
    with pytest.raises(InputError, match=r"a clip of shape .row, channel, frame, height, width"):
        local_disturbance(torch.zeros(0, 1, 2, 4, 4))
