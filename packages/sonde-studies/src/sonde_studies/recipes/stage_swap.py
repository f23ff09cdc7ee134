"""Fronts of some models on backs of others: the part that causes the difference."""

import math
from collections.abc import Sequence
from typing import Any

from sonde import Model
from sonde.core import matrix
from sonde.report import Answer
from sonde_studies.parts.figures import unfolded
from sonde_studies.parts.halves import ADVICE, cuts_of, is_one_origin, read_fronts, which_differs
from sonde_studies.parts.once import copies_once

QUESTION = "Which part makes two models differ, the front or the back?"


@copies_once()
def stage_swap(
    first: Model,
    second: Model,
    data: Any,
    *,
    third: Model | None = None,
    sites: str = "auto",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Join the front of each classifier to the back of each other one, and evaluate all.

    Models of one origin, whose fronts and backs fit as they are, need no map. Between others states
    go through a linear map, which is fitted on half of the data; the other half judges. Such a map
    aims at the other model's states, however bad: then a linear head on the states of each front
    says whether fronts differ, and a back that does badly may have a front that it cannot read. The
    table's variance is split into what fronts add, what backs add,
    and what only some pairs do.

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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first examples.
    seed : int, default=0
        Draws the halves.
    """
    names = ["first", "second", "third"][: 2 + (third is not None)]
    models = [m for m in (first, second, third) if m is not None]
    named = {"label_column": label_column, "group_column": group_column}
    options: dict[str, Any] = named | {"classes": classes, "limit": limit}
    cuts = cuts_of("stage_swap", models, data, sites, seed, **options)
    cut = cuts[(len(cuts) - 1) // 2]
    found = cut.stitched("stage_swap", "none") if len(cut.widths()) == 1 else None
    has_map = found is None or not is_one_origin(found.accuracy, len(cut.label.unique()))
    if found is None or has_map:
        found = cut.stitched("stage_swap")
    table, n = found.accuracy, len(cut.held)
    noise = 2 * float((2 * table.mean() * (1 - table.mean()) / n).sqrt())
    fronts = read_fronts(models, cut, data, progress, **options) if has_map else {}
    verdict = which_differs(found, noise, list(fronts.values()))
    shares = found.share_front, found.share_back, found.share_interaction
    share = [0.0 if math.isnan(x) else x for x in shares]  # a table of equal cells has no variance
    own = zip(names, table.diagonal().tolist(), strict=True)
    cells = {
        a: dict(zip(names, r.tolist(), strict=True)) for a, r in zip(names, table, strict=True)
    }
    heads = ", ".join(f"{float(r.mean()):.3f}" for r in fronts.values())
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear",
        sentence="As they are the models have accuracy "
        f"{', '.join(f'{v:.3f} ({name})' for name, v in own)}; with the front of one on the back "
        f"of another, {'with' if has_map else 'without'} a map between, it is "
        f"{float(found.value):.3f} on average. Fronts make {share[0]:.0%} of the variance of the "
        f"table, backs {share[1]:.0%}, pairs {share[2]:.0%}."
        + (f" Linear heads on the states of the fronts have accuracy {heads}." if heads else ""),
        value=share[0],
        n=n,
        range=(0.0, 1.0),
        rows=tuple(
            {"front": a, "site": site}
            | {f"back of {b}": v for b, v in cells[a].items()}
            | ({"head on the front": float(fronts[site_number].mean())} if fronts else {})
            for site_number, (a, site) in enumerate(zip(names, cut.sites, strict=True))
        ),
        drawn=matrix(
            *("Accuracy of fronts on backs", unfolded(cells, "front", "back")),
            *("back", "front", "accuracy"),
            low=0.0,
            high=1.0,
        ),
        facts={
            "cut": ", ".join(cut.sites),
            "map between models": "linear" if has_map else "none: models of one origin",
            "two standard errors": f"{noise:.3f}",
            "rows that fit maps": str(len(cut.fit)),
        }
        | cut.groups,
        advice=(
            "A map is linear and fitted to the other model's states. Models of other seeds often "
            "pass on with such a map: that alone does not say that they see the same.",
            *(ADVICE.get(verdict, ()) if has_map else ()),
        ),
    )
