"""Columns of a table that a model uses: several rankings, and a test of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sonde import Model
from sonde.core import bars
from sonde.explain import Baseline, IntegratedGradients, Objective, Occlusion, Shapley
from sonde.report import Answer
from sonde_studies.arms import passes_of
from sonde_studies.parts.columns import TableAnswers, permuted, table_of
from sonde_studies.parts.figures import SHARE, melted, rank_agreement
from sonde_studies.parts.figures import names as axis
from sonde_studies.parts.once import copies_once

QUESTION = "Which columns does the model use, and can the ranking be trusted?"
LEAST, MOST, ORDERS, AGREE = 40, 256, 20, 0.7


@copies_once(one_of_group=("data",))
def tabular_attribution(
    model: Model,
    data: Any,
    *,
    names: Sequence[str] = (),
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Rank the columns of a table by four methods, and test each ranking by deletion.

    Methods: permutation of a column over the rows, integrated gradients, Shapley values, and each
    column at its mean. A ranking is tested by putting columns at their mean in its order: the
    answers should move sooner than in random orders. Two halves of the rows should rank alike.

    Example: sonde recipe tabular-attribution MODEL TABLE -o columns.html

    Parameters
    ----------
    model : Model
        A classifier or regression that takes a row of numbers.
    data : str, path or iterable
        Rows; labels are not needed.
    names : sequence of str, default=()
        Names of the columns; by default those of the data where they fit.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first rows; at most 256 are explained.
    seed : int, default=0
        Draws rows, permutations and orders.
    """
    options: dict[str, Any] = {"limit": limit, "group_column": group_column}
    x, named = table_of("tabular_attribution", model, data, names, LEAST, **options)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST]]
    answers, draw = TableAnswers(model, x), torch.Generator().manual_seed(seed)
    base = Baseline("values", values=x.mean(0))
    how = Objective("output") if answers.is_regression else Objective("log_prob")
    methods = {
        "integrated gradients": IntegratedGradients(baseline=base),
        "Shapley": Shapley(baseline=base, n_orders=10, seed=seed),
        "column at its mean": Occlusion(baseline=base),
    }
    with passes_of("permutation", model.module):
        size = {"permutation": permuted(answers, x, draw)}
    for word, method in methods.items():
        with passes_of(word, model.module):
            found = torch.as_tensor(method.explain(model, x, objective=how).value)
        size[word] = found.detach().abs().double()
    rank = {word: v.mean(0) for word, v in size.items()}
    halves = {w: rank_agreement(v[::2].mean(0), v[1::2].mean(0))[0] for w, v in size.items()}
    area = {word: answers.area(v.argsort(descending=True)) for word, v in rank.items()}
    lots = (torch.randperm(x.shape[1], generator=draw) for _ in range(ORDERS))
    null = torch.tensor([answers.area(order) for order in lots]).double()
    best = max(area, key=lambda word: area[word])
    agree = float(
        np.median([rank_agreement(rank[best], v)[0] for w, v in rank.items() if w != best])
    )
    passes = area[best] > float(null.max())
    trusted = passes and min(agree, halves[best]) >= AGREE
    share = {word: v / v.sum().clamp(min=1e-12) for word, v in rank.items()}
    table: list[dict[str, Any]] = [
        {"column": named[i]} | {word: float(v[i]) for word, v in share.items()}
        for i in rank[best].argsort(descending=True).tolist()
    ]
    points = melted(table, "column", "share", "method", {word: word for word in share})
    facts = {f"deletion, {word}": f"{v:.3f}" for word, v in area.items()}
    facts |= {f"two halves, {word}": f"{v:.3f}" for word, v in halves.items()}
    return Answer(
        question=QUESTION,
        verdict="trust it" if trusted else "methods disagree" if passes else "no ranking",
        level="clear" if trusted else "warning",
        sentence=f"By {best} the model uses {', '.join(str(row['column']) for row in table[:3])} "
        f"most. With columns put at their mean in that order answers move by {area[best]:.2f} of "
        f"their spread on average, in {ORDERS} random orders by {float(null.mean()):.2f}, at most "
        f"{float(null.max()):.2f}; the ranks of other methods agree to {agree:.2f}, of halves to "
        f"{halves[best]:.2f}.",
        value=area[best],
        null=float(null.mean()),
        n=len(x),
        direction="higher",
        rows=tuple(table),
        drawn=bars("Share of each column, by method", points, SHARE, axis("column"), by="method"),
        facts=facts,
        advice=(
            "A column that repeats another shares its part: neither looks used where both are. The "
            "ranking is of the model, not of the world.",
        ),
    )
