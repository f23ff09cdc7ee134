"""Break the scene or the motion of video clips, and leave the other as it is."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from sonde.core.errors import InputError


def local_disturbance(
    clip: Float[Tensor, "row channel frame height width"],
    over: Literal["space", "time"] = "space",
    strength: float = 0.15,
    cells: int = 4,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "row channel frame height width"]:
    """Warp each clip by a smooth random field of shifts.

    ``space`` draws one field for all frames of a clip: shapes of the scene are bent, and what moves
    still moves from frame to frame. Take the result as a positive of the clip. ``time`` draws a
    field for each frame: the scene stays recognisable in every frame, and the motion between frames
    is lost. Take the result as the ``negative`` of ``Contrast``.

    Assumes      clips whose objects are larger than the shifts.
    Differs      from the paper: fields are bilinear between the shifts of ``cells`` x ``cells``
                 points; the paper's warps are not known to us.

    Parameters
    ----------
    clip : Float[Tensor, "row channel frame height width"]
        Video clips.
    over : {"space", "time"}, default="space"
        What is broken: the layout of the scene, or the order of positions in time.
    strength : float, default=0.15
        Standard deviation of a shift, in half widths of the picture.
    cells : int, default=4
        Points of the field along each side; more points make smaller, rougher shifts.
    generator : torch.Generator, optional
        Draws the shifts, on the CPU.

    Raises
    ------
    InputError
        If the strength is negative, there are fewer than two cells, ``over`` is unknown, or the
        clip has other axes or none of some kind.

    Examples
    --------
    >>> clip = torch.rand(1, 1, 1, 8, 8).expand(2, 3, 4, 8, 8)
    >>> same = local_disturbance(clip, generator=torch.Generator().manual_seed(0))
    >>> bool((same[:, :, 0] == same[:, :, 3]).all()), bool((same == clip).all())
    (True, False)

    References
    ----------
    wang2021dsm
    """
    if strength < 0 or cells < 2 or over not in ("space", "time"):
        raise InputError(
            "local_disturbance: expected over as 'space' or 'time', a strength of 0 or more and at "
            f"least 2 cells, got {over!r}, {strength} and {cells}."
        )
    if clip.ndim != 5 or clip.numel() == 0:
        raise InputError(
            "local_disturbance: expected a clip of shape (row, channel, frame, height, width) with "
            f"at least one of each, got {tuple(clip.shape)}."
        )
    rows, channels, frames, height, width = clip.shape
    fields = 1 if over == "space" else frames
    drawn = torch.randn(rows * fields, 2, cells, cells, generator=generator).to(clip)
    shift = interpolate(strength * drawn, (height, width), mode="bilinear", align_corners=True)
    shift = shift.reshape(rows, fields, 2, height, width).expand(-1, frames, -1, -1, -1)
    pictures = clip.transpose(1, 2).flatten(0, 1)
    still = torch.eye(2, 3).to(clip).expand(len(pictures), -1, -1)
    grid = affine_grid(still, [len(pictures), channels, height, width], align_corners=False)
    grid = grid + shift.flatten(0, 1).movedim(1, -1)
    moved = grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return moved.unflatten(0, (rows, frames)).transpose(1, 2)
