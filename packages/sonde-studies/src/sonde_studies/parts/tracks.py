"""Matching of clip detections to tracks by their states alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde import InputError
from sonde_studies.parts.rows import Rows, Values

Clip = dict[int, dict[str, Tensor]]
"""The states of the objects that are seen in each frame, by the name of the object."""
Match = Callable[[Any], Iterable[tuple[int, int]]]


def clips_of(
    recipe: str,
    states: Float[Tensor, "row dim"],
    rows: Rows,
    columns: Sequence[str],
    least: int,
    owner: Values,
) -> list[Clip]:
    """Return one clip of each group that has two or more objects, by clip, frame and object.

    Raises
    ------
    InputError
        If there are fewer than ``least``, or an object stands twice in a frame.
    """
    clips, whose = dict[str, Clip](), dict[str, int]()
    for x, row, own in zip(states, rows, owner.tolist(), strict=True):
        clip, frame, thing = (str(row[column]) for column in columns)
        whose[clip] = own
        clips.setdefault(clip, {}).setdefault(int(frame), {})[thing] = x
    several = [(k, clip) for k, clip in clips.items() if max(map(len, clip.values())) > 1]
    if len(several) < least or sum(len(f) for c in clips.values() for f in c.values()) < len(rows):
        raise InputError(
            f"{recipe}: expected {least} or more clips of two or more objects, each at most "
            f"once in a frame, got {len(several)} of {len(clips)} clips. Look at the columns."
        )
    first = {whose[k]: clip for k, clip in reversed(several)}
    if len(first) < least:
        raise InputError(
            f"{recipe}: expected clips of {least} or more groups, got {len(first)} groups of "
            f"{len(several)} clips. Record more persons or places."
        )
    return [clip for k, clip in several if first[whose[k]] is clip]


def followed(clip: Clip, match: Match, memory: float = 0.0) -> tuple[list[bool], list[bool]]:
    """Return the steps that keep the identity, all of them and those after a gap.

    A track is what the detections of one object in the first frame began; a detection is judged by
    the object of the detection that its track held last.
    """
    tracks = list[tuple[Tensor, str, int]]()
    right, again = list[bool](), list[bool]()
    for frame in sorted(clip):
        names = [*clip[frame]]
        x = torch.stack([clip[frame][name] for name in names])
        taken, known = dict[int, int](), {owner for _, owner, _ in tracks}
        if tracks:
            cost = 1 - (torch.stack([t[0] for t in tracks]) @ x.T).numpy()
            taken = {int(new): int(old) for old, new in match(cost)}
        for new, name in enumerate(names):
            if new not in taken:
                tracks.append((x[new], name, frame))
                continue
            state, owner, last = tracks[taken[new]]
            if name in known:
                right.append(owner == name)
                again += [owner == name] if frame - last > 1 else []
            tracks[taken[new]] = (memory * state + (1 - memory) * x[new], name, frame)
    return right or [True], again


def greedy(cost: Any) -> Any:
    """Return greedy pairs of rows and columns, lowest cost first."""
    cost, pairs = cost.copy(), list[tuple[int, int]]()
    for _ in range(min(cost.shape)):
        row, column = np.unravel_index(int(cost.argmin()), cost.shape)
        pairs.append((int(row), int(column)))
        cost[row], cost[:, column] = np.inf, np.inf
    return pairs


def optimal(cost: Any) -> Any:
    """Return the pairs of the assignment with the lowest total cost."""
    return zip(*linear_sum_assignment(cost), strict=True)
