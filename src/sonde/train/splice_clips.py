"""Synthesise clips in which an event lasts longer or shorter than in the clips that are given."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import InputError


def splice_clips(
    ground: Float[Tensor, "row frame *axes"],
    event: Float[Tensor, "row2 frame2 *axes"],
    fraction: tuple[float, float] = (0.1, 0.9),
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "row frame *axes"], Bool[Tensor, "row frame"]]:
    """Put each event in place of a run of frames of another clip, for a random time.

    The event is shown as a whole, faster or slower: its frames are resampled to the run's length by
    the nearest frame. Detectors that learn from such clips see events of all relative durations.

    Assumes      clips, or states of their frames, of equal axes behind the frames.
    Differs      from the paper: one event in one clip; the paper joins several clips.

    Parameters
    ----------
    ground : Float[Tensor, "row frame *axes"]
        Clips that keep their length and, outside of the run, their frames.
    event : Float[Tensor, "row2 frame2 *axes"]
        Clips that are put in, one for each row, of any length.
    fraction : (float, float), default=(0.1, 0.9)
        Least and largest part of the clip that the event takes, in (0, 1]; uniform between them,
        and at least one frame.
    generator : torch.Generator, optional
        Draws durations and places, on the CPU.

    Returns
    -------
    The clips, and a mask that is True at the frames of the event.

    Raises
    ------
    InputError
        If a fraction is out of range, or the numbers of clips differ.

    Examples
    --------
    >>> clips, where = splice_clips(torch.zeros(2, 10, 1), torch.ones(2, 4, 1), (0.3, 0.3))
    >>> where.sum(1).tolist(), bool((clips[..., 0] == where).all())
    ([3, 3], True)

    References
    ----------
    liu2025lagovad
    """
    low, high = fraction
    if not 0 < low <= high <= 1 or len(ground) != len(event) or not event.shape[1]:
        raise InputError(
            "splice_clips: expected fractions 0 < low <= high <= 1 and as many events as clips, "
            f"got {fraction}, {len(event)} events of {event.shape[1]} frames and {len(ground)} "
            "clips."
        )
    n, frames = ground.shape[:2]
    size, place = torch.rand(2, n, 1, generator=generator)
    length = ((low + (high - low) * size) * frames).round().clamp(min=1)
    start = (place * (frames - length + 1)).floor()
    along = torch.arange(frames) - start
    where = (along >= 0) & (along < length)
    shown = ((along + 0.5) * event.shape[1] / length).floor().long().clamp(0, event.shape[1] - 1)
    rows = torch.arange(n)[:, None].to(event.device)
    inserted = event[rows, shown.to(event.device)]
    where = where.to(ground.device)
    mask = where.reshape(*where.shape, *(1,) * (ground.ndim - 2))
    return torch.where(mask, inserted.to(ground), ground), where
