"""Detection of recoloured images from correlations of channels and pixels."""

from typing import Any

import numpy as np
import torch

from sonde import InputError
from sonde.core import marks
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.colours import KINDS, SIZE, features, opened, patches_of, recoloured
from sonde_studies.parts.figures import high_bar, names, told
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.once import copies_once

QUESTION = "Were the colours of these pictures changed?"
LEAST, ALARM = 20, 0.05
"""Patches, and how often one or more of the questioned pictures are named falsely."""
UNSEEN = (
    "The threshold comes from other pictures: a picture of another camera or archive may lie below "
    "it though it was recoloured. That none is above it does not clear the questioned pictures."
)


@copies_once("questioned", one_of_group=("pictures",))
def recolour(
    pictures: Any,
    *,
    questioned: Any = None,
    image_column: str = "image",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Learn the effect of recolouring on images of one source, and detect it in others.

    Patches of the pictures are recoloured here by curves and by mixing channels. A linear head on
    the correlations of neighbouring pixels, on those of channels, and on both tells them from
    the originals, judged on pictures that it did not learn on; then it looks at the questioned.

    Example: sonde recipe recolour ORIGINALS --questioned NEW -o colours.html

    Parameters
    ----------
    pictures : str, path or iterable
        Pictures in colour that were not changed, four or more.
    questioned : str, path or iterable, optional
        Pictures that may have been.
    image_column : str, default="image"
        Column of the picture, where data are rows.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first pictures.
    seed : int, default=0
        Draws the changes, and the pictures that judge.
    """
    draw = torch.Generator().manual_seed(seed)
    patches = [patches_of(p, draw) for _, p in opened("recolour", pictures, image_column, limit)]
    n, n_patches = len(patches), sum(map(len, patches))
    order, n_held = torch.randperm(n, generator=draw).tolist(), max(1, n * 2 // 5)
    if n < 4 or n_patches < LEAST:
        raise InputError(
            f"recolour: expected four or more pictures of {SIZE} x {SIZE} pixels or more, got "
            f"{n} with {n_patches} patches."
        )
    sides = [torch.cat([patches[i] for i in o]) for o in (order[n_held:], order[:n_held])]
    owner = np.repeat(np.arange(n_held), [len(patches[i]) for i in order[:n_held]])
    (x, changed), (y, truth) = (recoloured(side, draw) for side in sides)
    heads = {kind: linear_head().fit(features(kind, x).numpy(), changed.numpy()) for kind in KINDS}

    def score(kind: str, of: torch.Tensor) -> Any:
        return heads[kind].decision_function(features(kind, of).numpy())

    said = {kind: score(kind, y) for kind in KINDS}
    found = {kind: auroc(s, truth.numpy(), seed=seed) for kind, s in said.items()}
    best = max(KINDS, key=lambda kind: float(found[kind].value))
    given = opened("recolour", questioned or [], image_column, limit)
    fine, works = ~truth.numpy(), found[best].low > 0.5
    own = [said[best][fine & (owner == i)] for i in range(n_held)]
    # Patches of one picture lie above a threshold together, so the median of each counts.
    bar = high_bar([float(np.median(s)) for s in own if len(s)], ALARM / max(1, len(given)))
    asked = dict[str, float]()
    for name, p in given:
        of = (patches_of(p, draw) * 255).round() / 255
        asked[name] = float((score(best, of) > bar).mean())
    above = [float((said[best][of] > bar).mean()) for of in (fine, ~fine)]
    flagged = [name for name, share in asked.items() if share > 0.5]
    ending = f" Of {len(asked)} questioned pictures {len(flagged)} have most patches above it."
    verdict = "recoloured" if flagged else "cannot tell" if asked else "can be told"
    listed = ", ".join(f"{kind} {float(v.value):.3f}" for kind, v in found.items())
    table = [{"what": f"AUROC, {kind}", "value": float(v.value)} for kind, v in found.items()]
    table += [{"what": f"flagged, {name}", "value": v} for name, v in asked.items()]
    words = ["recoloured" if t else "as it was" for t in truth.tolist()]
    points = [{"score": float(s), "patch": w} for s, w in zip(said[best], words, strict=True)]
    title = "Scores of patches of the pictures that judge"
    return Answer(
        question=QUESTION,
        verdict=verdict if works else "cannot be told",
        level="warning" if flagged or not works else "clear",
        sentence=f"On {len(y)} patches of {n_held} other pictures {best} tell recoloured patches "
        f"with an AUROC of {float(found[best].value):.3f} ({listed}); {above[0]:.0%} of unchanged "
        f"patches and {above[1]:.0%} of recoloured ones lie above the threshold."
        f"{ending if asked else ''}",
        **told(found[best]),
        rows=tuple(table),
        drawn=marks(title, points, "score", names("patch"), by="patch"),
        facts={"threshold": f"{bar:.4g}", "pictures": str(n)},
        advice=(
            *([UNSEEN] if verdict == "cannot tell" else []),
            "The head knows curves and mixing of channels, at the quality of these files: "
            "compression or resizing of the questioned pictures alone may raise an alarm.",
        ),
    )
