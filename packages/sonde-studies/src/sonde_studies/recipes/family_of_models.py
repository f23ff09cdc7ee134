"""Handover: a small model reads the input, and a large one continues from its states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde.core import ChartAxis, curves
from sonde.report import Answer
from sonde_studies.parts.choice import balanced, unless_untold
from sonde_studies.parts.figures import ACCURACY, melted
from sonde_studies.parts.halves import cuts_of
from sonde_studies.parts.once import copies_once

QUESTION = "Can a small model hand over to a large one midway?"
HOWS = ("with a map", "as they are")
WORDED = {HOWS[0]: "through a fitted map", HOWS[1]: "without a map"}
KEPT = 0.95


@copies_once()
def family_of_models(
    small: Model,
    large: Model,
    data: Any,
    *,
    sites: str = "auto",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Let the front of a small classifier hand its states to the back of a large one.

    For each depth: accuracy if a fitted linear map stands between them, and, where widths are
    equal, if nothing does. Half of the data fits the maps, the other half judges.

    Example: sonde recipe family-of-models SMALL LARGE DATA -o family.html

    Parameters
    ----------
    small : Model
        The classifier that begins.
    large : Model
        The classifier of the same classes that goes on.
    data : str, path or iterable
        Labelled examples that neither was trained on.
    sites : str, default="auto"
        Where they are cut: one site, or SMALL,LARGE; "auto" is up to six equal depths.
    label_column : str, optional
        Column of the class, where its name does not say so.
    classes : sequence of str, optional
        Names of the classes in the order of the outputs, where labels are names.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first examples.
    seed : int, default=0
        Draws the halves.
    """
    options = {"label_column": label_column, "classes": classes, "limit": limit}
    options |= {"group_column": group_column}
    rows, own, fits = list[dict[str, Any]](), [0.0, 0.0], {how: list[Any]() for how in HOWS}
    whole, label = torch.zeros(0), np.zeros(0)
    cuts = cuts_of("family_of_models", [small, large], data, sites, seed, **options)
    for cut in cuts:
        mapped, plain = cut.stitched("family_of_models").right, None
        if len(cut.widths()) == 1:
            plain = cut.stitched("family_of_models", "none").right[0, 1]
        found = dict[str, float | None]()
        own, whole, label = mapped.mean(2).diagonal().tolist(), mapped[1, 1], cut.label.numpy()
        place = {"small up to": cut.sites[0], "large from": cut.sites[1]}
        for how, right in zip(HOWS, (mapped[0, 1], plain), strict=True):
            found[how] = None if right is None else float(right.mean())
            if right is not None and _keeps(right, whole, label):
                fits[how].append(place | found)
        rows.append(place | found)
    how = next((how for how in reversed(HOWS) if fits[how]), None)
    best = max(rows, key=lambda row: row[HOWS[0]])
    said = f"the best place is {best['small up to']}, with accuracy {best[HOWS[0]]:.3f}"
    if how is not None:
        last = fits[how][-1]
        said = f"the small one may run up to {last['small up to']}: {last[how]:.3f} {WORDED[how]}"
    levels = [
        {"value": v, "name": f"{n} model"} for v, n in zip(own, ("small", "large"), strict=True)
    ]
    verdict = "hand over" if how == HOWS[1] else "only with a map" if how else "do not"
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, {"large": whole.numpy()}, label, is_bad=how is None),
        sentence=f"The small model alone has accuracy {own[0]:.3f}, the large one {own[1]:.3f}; if "
        f"the small one begins and the large one goes on, {said}.",
        value=best[HOWS[0]],
        null=min(own),
        n=len(cuts[0].held),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(rows),
        drawn=curves(
            "Accuracy by where the small model hands over",
            melted(rows, "small up to", "accuracy", "states", {how: how for how in HOWS}),
            ChartAxis("small up to", title="last site of the small model"),
            ACCURACY,
            by="states",
            levels=levels,
        ),
        facts={"small model": f"{own[0]:.4f}", "large model": f"{own[1]:.4f}"} | cuts[0].groups,
        advice=(
            "A place keeps enough if it has 95 % of what the large model's balanced accuracy is "
            "above chance. To pass states from one model to another without a map, train the "
            "models for it, e.g. with sonde.train.Align.",
        ),
    )


def _keeps(right: Tensor, large: Tensor, label: Any) -> bool:
    """Return whether the pair keeps enough of the large model's accuracy."""
    chance = 1 / len(np.unique(label))
    value, whole = (balanced(r.numpy(), label)[0] for r in (right, large))
    return value - chance >= KEPT * (whole - chance)
