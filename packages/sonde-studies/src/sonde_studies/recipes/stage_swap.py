"""Fronts of some models on backs of others: which part makes the difference."""

import math
from collections.abc import Sequence
from typing import Any

from sonde import Model
from sonde.core import matrix
from sonde.report import Answer
from sonde_studies.parts.figures import unfolded
from sonde_studies.parts.halves import cuts_of

QUESTION = "Which part makes two models differ, the front or the back?"


def stage_swap(
    first: Model,
    second: Model,
    data: Any,
    *,
    third: Model | None = None,
    sites: str = "auto",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Put the front of each classifier on the back of each other, and judge all of them.

    Between two models states go through a linear map, which is fitted on half of the data; the
    other half judges. The table's variance is split into what fronts add, what backs add, and what
    only some pairs do.

    Example: sonde recipe stage-swap FIRST SECOND DATA -o swap.html

    Parameters
    ----------
    first : Model
    second : Model
        Classifiers of the same classes that read the same inputs.
    data : str, path or iterable
        Labelled examples that no model was trained on.
    third : Model, optional
        A third classifier.
    sites : str, default="auto"
        Where models are cut: one site, or one for each model with commas between them; "auto" is
        the middle of their blocks.
    label_column : str, optional
        Column of the class, where its name does not say so.
    classes : sequence of str, optional
        Names of the classes in the order of the outputs, where labels are names.
    limit : int, optional
        Read only the first examples.
    seed : int, default=0
        Draws the halves.
    """
    names = ["first", "second", "third"][: 2 + (third is not None)]
    models = [m for m in (first, second, third) if m is not None]
    options = {"label_column": label_column, "classes": classes, "limit": limit}
    cuts = cuts_of("stage_swap", models, data, sites, seed, **options)
    cut = cuts[(len(cuts) - 1) // 2]
    found = cut.stitched("stage_swap")
    table, n = found.accuracy, len(cut.held)
    spread = [float(v.max() - v.min()) for v in (found.front, found.back)]
    noise = 2 * float((table.mean() * (1 - table.mean()) / n).sqrt())
    shares = found.share_front, found.share_back, found.share_interaction
    share = [0.0 if math.isnan(x) else x for x in shares]  # a table of equal cells has no variance
    differ = max(*spread, float(found.null) - float(found.value)) > noise
    which = "front" if spread[0] > spread[1] else "back"
    verdict = f"the {which} differs" if max(spread) > noise else "they do not fit"
    own = zip(names, table.diagonal().tolist(), strict=True)
    cells = {
        a: dict(zip(names, r.tolist(), strict=True)) for a, r in zip(names, table, strict=True)
    }
    return Answer(
        question=QUESTION,
        verdict=verdict if differ else "they are alike",
        level="clear",
        sentence="As they are the models have accuracy "
        f"{', '.join(f'{v:.3f} ({name})' for name, v in own)}; with "
        f"the front of one on the back of another it is {float(found.value):.3f} on average. "
        f"Fronts make {share[0]:.0%} of the variance of the table, backs {share[1]:.0%}, pairs "
        f"{share[2]:.0%}.",
        value=share[0],
        n=n,
        range=(0.0, 1.0),
        rows=tuple(
            {"front": a, "site": site} | {f"back of {b}": v for b, v in cells[a].items()}
            for a, site in zip(names, cut.sites, strict=True)
        ),
        drawn=matrix(
            "Accuracy of fronts on backs",
            unfolded(cells, "front", "back"),
            "back",
            "front",
            "accuracy",
            low=0.0,
            high=1.0,
        ),
        facts={
            "cut": ", ".join(cut.sites),
            "two standard errors": f"{noise:.3f}",
            "rows that fit maps": str(len(cut.fit)),
        },
        advice=(
            "A map is linear and fitted to the other model's states. Models of other seeds often "
            "pass on with such a map: that alone does not say that they see the same.",
        ),
    )
