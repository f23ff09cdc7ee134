"""Objects over the frames of a clip: test whether states keep them apart."""

from typing import Any

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]
from torch.nn.functional import normalize

from sonde import Model
from sonde.core import bars
from sonde.report import Answer
from sonde_studies.parts.figures import SHARE, error_of, melted, names
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import joined_owners, owners_of
from sonde_studies.parts.rows import rows_with
from sonde_studies.parts.states import last_states
from sonde_studies.parts.tracks import Match, clips_of, followed, greedy, optimal

QUESTION = "Does the model keep apart which object is which over time?"
LEAST, MEMORY, LEVEL = 10, 0.7, 0.05
"""``LEVEL``: how often the best of three ways is named where states say nothing."""
GREEDY, OPTIMAL = "frame to frame, greedy", "frame to frame, optimal"
REFERENCE, RANDOM = "with a reference, optimal", "at random"
WORDED = {"kept": "all", "kept after a gap": "after a gap"}


@copies_once()
def slots_over_time(
    model: Model,
    data: Any,
    *,
    view_column: str = "view",
    clip_column: str = "clip",
    frame_column: str = "frame",
    object_column: str = "object",
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Track objects from frame to frame by their states, and count identity switches.

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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One clip of
        each group counts.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the random matching.
    """
    columns = [view_column, clip_column, frame_column, object_column]
    rows = rows_with("slots_over_time", data, columns, 2 * LEAST, limit)
    states = last_states(model, [row[view_column] for row in rows], site, progress)
    states = normalize(states - states.mean(0), dim=1)
    named = np.unique([str(row[clip_column]) for row in rows], return_inverse=True)[1]
    owner = joined_owners(named, owners_of(data, group_column, limit)[: len(rows)])
    clips = clips_of("slots_over_time", states, rows, columns[1:], LEAST, owner)
    draw = np.random.default_rng(seed)
    ways: dict[str, tuple[Match, float]] = {
        GREEDY: (greedy, 0.0),
        OPTIMAL: (optimal, 0.0),
        REFERENCE: (optimal, MEMORY),
        RANDOM: (lambda cost: optimal(draw.permuted(cost)), 0.0),
    }
    kept = {way: [followed(clip, *how) for clip in clips] for way, how in ways.items()}
    share = {way: np.array([float(np.mean(steps)) for steps, _ in k]) for way, k in kept.items()}
    back = {way: [x for _, again in k for x in again] for way, k in kept.items()}
    score = {way: float(v.mean()) for way, v in share.items()}
    best = max((GREEDY, OPTIMAL, REFERENCE), key=lambda way: score[way])
    gain, bound = share[best] - share[RANDOM], float(stdtrit(len(clips) - 1, 1 - LEVEL / 3))
    follows = float(gain.mean()) > bound * float(gain.std(ddof=1)) / len(clips) ** 0.5
    table: list[dict[str, Any]] = [
        {"way": way, "kept": score[way], "kept after a gap": float(np.mean(b)) if b else None}
        for way, b in back.items()
    ]
    points = melted(table, "way", "share", "steps", WORDED)
    return Answer(
        question=QUESTION,
        verdict=best if follows else "it does not",
        level="clear" if follows else "warning",
        sentence=f"Of the steps of {len(clips)} clips {score[best]:.1%} keep the identity if "
        f"matched {best}, {score[GREEDY]:.1%} if matched {GREEDY}, {score[RANDOM]:.1%} {RANDOM}. "
        f"{len(back[best])} steps follow a gap.",
        value=score[best],
        se=error_of(share[best]),
        null=score[RANDOM],
        n=len(clips),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=bars("Steps that keep the identity", points, SHARE, names("way"), by="steps"),
        facts={"clips": str(len(clips)), "detections": str(len(rows))},
        advice=(
            "Places are not used: a tracker that knows where objects are does better. States "
            "that name the class alone mix up objects of one class.",
        ),
    )
