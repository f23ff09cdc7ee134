"""Which columns of a table a model uses: rankings by several methods, and a test of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde import InputError, Model
from sonde.core import ChartAxis, bars
from sonde.data import ItemInputs, open_inputs
from sonde.explain import Baseline, IntegratedGradients, Objective, Occlusion, Shapley
from sonde.report import Answer
from sonde.tap import place_of
from sonde_studies.parts.figures import melted

QUESTION = "Which columns does the model use, and can the ranking be trusted?"
LEAST, MOST, ORDERS, AGREE = 40, 256, 20, 0.7
PERMUTED = "permutation"


def tabular_attribution(
    model: Model,
    data: Any,
    *,
    names: Sequence[str] = (),
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
    limit : int, optional
        Read only the first rows; at most 256 are explained.
    seed : int, default=0
        Draws rows, permutations and orders.
    """
    inputs = open_inputs(model, data, limit=limit)
    x = _table(model, inputs, seed)
    n_columns, draw = x.shape[1], torch.Generator().manual_seed(seed)
    named = _names([*names], inputs.layout.inputs, n_columns)
    answers = _Answers(model, x)
    base = Baseline("values", values=x.mean(0))
    how = Objective("output") if answers.is_regression else Objective("log_prob")
    size = {PERMUTED: _permuted(answers, x, draw)}
    methods = (
        IntegratedGradients(baseline=base),
        Shapley(baseline=base, n_orders=10, seed=seed),
        Occlusion(baseline=base),
    )
    for method in methods:
        found = method.explain(model, x, objective=how)
        size[_word(method)] = torch.as_tensor(found.value).detach().abs().double()
    rank = {word: v.mean(0) for word, v in size.items()}
    halves = {word: _rank_agreement(v[::2].mean(0), v[1::2].mean(0)) for word, v in size.items()}
    area = {word: answers.area(v.argsort(descending=True)) for word, v in rank.items()}
    null = torch.tensor([
        answers.area(torch.randperm(n_columns, generator=draw)) for _ in range(ORDERS)
    ]).double()  # fmt: skip
    best = max(area, key=lambda word: area[word])
    others = [_rank_agreement(rank[best], v) for word, v in rank.items() if word != best]
    passes = area[best] > float(null.max())
    trusted = passes and float(np.median(others)) >= AGREE and halves[best] >= AGREE
    share = {word: v / v.sum().clamp(min=1e-12) for word, v in rank.items()}
    table = [
        {"column": named[i]} | {word: float(v[i]) for word, v in share.items()}
        for i in rank[best].argsort(descending=True).tolist()
    ]
    top = ", ".join(str(row["column"]) for row in table[:3])
    return Answer(
        question=QUESTION,
        verdict="trust it" if trusted else "methods disagree" if passes else "no ranking",
        level="clear" if trusted else "warning",
        sentence=f"By {best} the model uses {top} most. With columns put at their mean "
        f"in that order answers move by {area[best]:.2f} of their spread on average, in {ORDERS} "
        f"random orders by {float(null.mean()):.2f}, at most {float(null.max()):.2f}; the ranks of "
        f"other methods agree to {float(np.median(others)):.2f}, of halves to {halves[best]:.2f}.",
        value=area[best],
        null=float(null.mean()),
        n=len(x),
        direction="higher",
        rows=tuple(table),
        drawn=bars(
            "Share of each column, by method",
            melted(table, "column", "share", "method", {word: word for word in share}),
            ChartAxis("share", share=True, zero=True),
            ChartAxis("column", title=""),
            by="method",
        ),
        facts={f"deletion, {word}": f"{v:.3f}" for word, v in area.items()}
        | {f"two halves, {word}": f"{v:.3f}" for word, v in halves.items()},
        advice=(
            "A column that repeats another shares its part: neither looks used where both are. The "
            "ranking is of the model, not of the world.",
        ),
    )


class _Answers:
    """What a model answers on a table, in spreads of its answers."""

    def __init__(self, model: Model, x: Tensor) -> None:
        self._model, self._x, self._mean = model, x, x.mean(0)
        said = self._said(x)
        self.is_regression = said.shape[1] == 1
        self._centre, self._scale = said.mean(0), said.std(0).clamp(min=1e-9)
        self._own = self.of(x)

    @torch.no_grad()
    def _said(self, x: Tensor) -> Tensor:
        first = next(self._model.module.parameters(), x)
        said: Any = self._model.module(x.to(first))
        said = getattr(said, "logits", said).double().cpu()
        said = said[:, None] if said.ndim == 1 else said
        return said if said.shape[1] == 1 else said.softmax(1)

    def of(self, x: Tensor) -> Tensor:
        """Return the answers (row, output), standardised."""
        return (self._said(x) - self._centre) / self._scale

    def moved(self, x: Tensor) -> Tensor:
        """Return how far each row's answer is from its own, in spreads."""
        return (self.of(x) - self._own).abs().mean(1)

    def area(self, order: Tensor) -> float:
        """Return how far answers move on average while columns go to their mean in an order."""
        x, total = self._x.clone(), 0.0
        for column in order.tolist():
            x[:, column] = self._mean[column]
            total += float(self.moved(x).mean())
        return total / len(order)


def _permuted(answers: _Answers, x: Tensor, draw: torch.Generator) -> Tensor:
    found = torch.zeros(x.shape).double()
    for column in range(x.shape[1]):
        other = x.clone()
        other[:, column] = x[torch.randperm(len(x), generator=draw), column]
        found[:, column] = answers.moved(other)
    return found


def _rank_agreement(a: Tensor, b: Tensor) -> float:
    found: Any = spearmanr(a.numpy(), b.numpy())
    return float(np.nan_to_num(found.statistic))


def _word(method: Any) -> str:
    words = {"IntegratedGradients": "integrated gradients", "Occlusion": "column at its mean"}
    return words.get(type(method).__name__, type(method).__name__)


def _table(model: Model, inputs: ItemInputs, seed: int) -> Tensor:
    """Return the rows as the model takes them; of many rows some, drawn by the seed."""
    parts = list[Tensor]()
    for batch in inputs.batches(0, len(inputs)):
        args, _ = place_of(model.module, batch).call(batch.args, batch.kwargs)
        given = [v for v in (*args, *batch.kwargs.values()) if isinstance(v, Tensor)]
        if len(given) != 1 or not given[0].is_floating_point() or given[0].ndim != 2:
            raise InputError(
                "tabular_attribution: expected a model that takes one row of numbers, got "
                f"{', '.join(f'{v.dtype} {tuple(v.shape)}' for v in given)}."
            )
        parts.append(given[0].cpu().float())
    x = torch.cat(parts)
    if len(x) < LEAST or x.shape[1] < 3:
        raise InputError(
            f"tabular_attribution: expected {LEAST} or more rows of three or more columns, got "
            f"{tuple(x.shape)}."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:MOST]]


def _names(names: list[str], columns: Sequence[str], n: int) -> list[str]:
    """Return a name for each column: as given, those of the table, or by number."""
    if names and len(names) != n:
        raise InputError(f"tabular_attribution: expected {n} names, got {len(names)}.")
    return names or ([*columns] if len(columns) == n else [f"column {i}" for i in range(n)])
