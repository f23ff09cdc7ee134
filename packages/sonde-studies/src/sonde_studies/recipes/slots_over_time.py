"""Objects over the frames of a clip: whether states keep apart which object is which."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde import InputError, Model
from sonde.core import ChartAxis, bars
from sonde.report import Answer
from sonde_studies.parts.figures import error_of, melted
from sonde_studies.parts.rows import rows_with
from sonde_studies.parts.states import states_of

QUESTION = "Does the model keep apart which object is which over time?"
LEAST, MEMORY = 10, 0.7
GREEDY, OPTIMAL, REFERENCE, RANDOM = (
    "frame to frame, greedy", "frame to frame, optimal", "with a reference, optimal", "at random",
)  # fmt: skip
Clip = dict[int, dict[str, Tensor]]
"""The states of the objects that are seen in each frame, by the name of the object."""


def slots_over_time(
    model: Model,
    data: Any,
    *,
    view_column: str = "view",
    clip_column: str = "clip",
    frame_column: str = "frame",
    object_column: str = "object",
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Follow objects from frame to frame by their states, and count where identities are mixed up.

    Ways to match: the most alike pair first, the assignment that is best in total, and the same
    against a running mean of each object's states, which outlasts frames without it. An identity is
    kept if a detection continues the track of its own object.

    Example: sonde recipe slots-over-time MODEL DETECTIONS --clip-column video -o tracks.html

    Parameters
    ----------
    model : Model
        An encoder of single detections, such as crops.
    data : str, path or iterable
        Rows with a detection, its clip, its frame and the object that it shows.
    view_column : str, default="view"
        Column of the detection.
    clip_column : str, default="clip"
        Column of the clip.
    frame_column : str, default="frame"
        Column of the frame, a number.
    object_column : str, default="object"
        Column of the object, which is told apart within a clip alone.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the random matching.
    """
    columns = [view_column, clip_column, frame_column, object_column]
    rows = rows_with("slots_over_time", data, columns, 2 * LEAST, limit)
    states = [*states_of(model, [row[view_column] for row in rows], site, progress).values()][-1]
    states = states - states.mean(0)
    states = states / states.norm(dim=1, keepdim=True).clamp(min=1e-12)
    clips = dict[str, Clip]()
    for x, row in zip(states, rows, strict=True):
        frame = clips.setdefault(str(row[clip_column]), {}).setdefault(int(row[frame_column]), {})
        frame[str(row[object_column])] = x
    several = [clip for clip in clips.values() if max(map(len, clip.values())) > 1]
    if len(several) < LEAST or sum(len(f) for c in clips.values() for f in c.values()) < len(rows):
        raise InputError(
            f"slots_over_time: expected {LEAST} or more clips of two or more objects, each at most "
            f"once in a frame, got {len(several)} of {len(clips)} clips. Look at the columns."
        )
    draw = np.random.default_rng(seed)
    ways: dict[str, tuple[Callable[[Any], Any], float]] = {
        GREEDY: (_greedy, 0.0), OPTIMAL: (_optimal, 0.0), REFERENCE: (_optimal, MEMORY),
        RANDOM: (lambda cost: _optimal(draw.permuted(cost)), 0.0),
    }  # fmt: skip
    kept = {way: [_followed(clip, *how) for clip in several] for way, how in ways.items()}
    share = {way: np.array([float(np.mean(all_)) for all_, _ in k]) for way, k in kept.items()}
    back = {way: [x for _, again in k for x in again] for way, k in kept.items()}
    score = {way: float(v.mean()) for way, v in share.items()}
    best = max((GREEDY, OPTIMAL, REFERENCE), key=lambda way: score[way])
    gain = share[best] - share[RANDOM]
    follows = float(gain.mean()) > 2 * error_of(gain)
    table = [
        {"way": way, "kept": score[way], "kept after a gap": float(np.mean(b)) if b else None}
        for way, b in back.items()
    ]
    return Answer(
        question=QUESTION,
        verdict=best if follows else "it does not",
        level="clear" if follows else "warning",
        sentence=f"Of the steps of {len(several)} clips {score[best]:.1%} keep the identity if "
        f"matched {best}, {score[GREEDY]:.1%} if matched {GREEDY}, {score[RANDOM]:.1%} {RANDOM}. "
        f"{len(back[best])} steps follow a gap.",
        value=score[best],
        se=error_of(share[best]),
        null=score[RANDOM],
        n=len(several),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=bars(
            "Steps that keep the identity",
            melted(table, "way", "share", "steps",
                   {"kept": "all", "kept after a gap": "after a gap"}),
            ChartAxis("share", share=True, zero=True),
            ChartAxis("way", title=""),
            by="steps",
        ),
        facts={"clips": str(len(several)), "detections": str(len(rows))},
        advice=(
            "Places are not used: a tracker that knows where objects are does better. States "
            "that name the class alone mix up objects of one class.",
        ),
    )  # fmt: skip


def _followed(clip: Clip, match: Callable[[Any], Any], memory: float) -> tuple[Any, Any]:
    """Return which steps keep the identity, all of them and those after a gap.

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


def _greedy(cost: Any) -> Any:
    """Return pairs of rows and columns, the cheapest first."""
    cost, pairs = cost.copy(), list[tuple[int, int]]()
    for _ in range(min(cost.shape)):
        row, column = np.unravel_index(int(cost.argmin()), cost.shape)
        pairs.append((int(row), int(column)))
        cost[row], cost[:, column] = np.inf, np.inf
    return pairs


def _optimal(cost: Any) -> Any:
    """Return the pairs of the assignment that is cheapest in total."""
    return zip(*linear_sum_assignment(cost), strict=True)
