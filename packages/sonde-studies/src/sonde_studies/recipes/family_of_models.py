"""Handing over: a small model reads the input, and a large one goes on from its states."""

from collections.abc import Sequence
from typing import Any

import torch

from sonde import InputError, Model
from sonde.core import ChartAxis, curves
from sonde.measure import stitch
from sonde.report import Answer
from sonde_studies.parts.figures import check_order, melted
from sonde_studies.parts.halves import HalfModel, cuts_of, halves_of

QUESTION = "Can a small model hand over to a large one midway?"
HOWS = ("with a map", "as they are")
WORDED = {HOWS[0]: "through a fitted map", HOWS[1]: "without a map"}
KEPT = 0.95


def family_of_models(
    small: Model,
    large: Model,
    data: Any,
    *,
    sites: str = "auto",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
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
    limit : int, optional
        Read only the first examples.
    seed : int, default=0
        Draws the halves.
    """
    models, options = (
        [small, large],
        {"label_column": label_column, "classes": classes, "limit": limit},
    )
    inputs, (fit, held) = halves_of(models, data, seed, **options)
    rows, own = list[dict[str, Any]](), torch.zeros(2)
    for cut in cuts_of(models, data, sites, **options):
        halves = [
            HalfModel(m, x, site, held) for m, x, site in zip(models, inputs, cut, strict=True)
        ]
        label = halves[0].labels()
        if (label < 0).any():
            raise InputError("family_of_models: expected labelled examples. Name label_column.")
        parts = [h.front for h in halves], [h.back for h in halves], fit, held, label
        mapped = stitch(*parts)
        own = mapped.accuracy.diagonal()
        widths = {half.front(held[:2]).shape[1] for half in halves}
        plain = float(stitch(*parts, "none").accuracy[0, 1]) if len(widths) == 1 else None
        found = dict(zip(HOWS, (float(mapped.accuracy[0, 1]), plain), strict=True))
        rows.append({"small up to": cut[0], "large from": cut[1], **found})
    worse, better = float(own.min()), float(own[1])
    check_order("family_of_models", float(own.max()), inputs[0].label_names)
    fits = {how: [r for r in rows if (r[how] or 0.0) >= KEPT * better] for how in HOWS}
    how = next((how for how in reversed(HOWS) if fits[how]), None)
    best = max(rows, key=lambda row: row[HOWS[0]])
    said = f"the best place is {best['small up to']}, with accuracy {best[HOWS[0]]:.3f}"
    if how is not None:
        last = fits[how][-1]
        said = f"the small one may run up to {last['small up to']}: {last[how]:.3f} {WORDED[how]}"
    return Answer(
        question=QUESTION,
        verdict="hand over" if how == HOWS[1] else "only with a map" if how else "do not",
        level="clear" if how else "warning",
        sentence=f"The small model alone has accuracy {float(own[0]):.3f}, the large one "
        f"{better:.3f}; if the small one begins and the large one goes on, {said}.",
        value=best[HOWS[0]],
        null=worse,
        n=len(held),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(rows),
        drawn=_drawn(rows, own),
        facts={"small model": f"{float(own[0]):.4f}", "large model": f"{better:.4f}"},
        advice=(
            "A place keeps enough if it has 95 % of the large model's accuracy. Models that are "
            "to hand over without a map are trained for it, e.g. by sonde.train.Align.",
        ),
    )


def _drawn(rows: list[dict[str, Any]], own: torch.Tensor) -> dict[str, Any]:
    levels = [
        {"value": float(v), "name": f"{n} model"}
        for n, v in zip(("small", "large"), own, strict=True)
    ]
    x = ChartAxis("small up to", title="last site of the small model")
    points = melted(rows, "small up to", "accuracy", "states", {how: how for how in HOWS})
    title, y = "Accuracy by where the small model hands over", ChartAxis("accuracy", share=True)
    return curves(title, points, x, y, by="states", levels=levels)
