"""Several views of one thing: how many are needed, and how their states should be joined."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import InputError, Model
from sonde.core import ChartAxis, curves
from sonde.layers import Attention, Readout
from sonde.report import Answer
from sonde_studies.recipes._parts import apart, error_of, linear_head, rows_with, states_of
from sonde_studies.worlds.learning import drawn, minimise

QUESTION = "How many views does an answer need, and how should they be joined?"
LEAST, TEST, TRAINED, DIM, STEPS, NEAR = 40, 0.4, 4, 32, 300, 0.01
ORDERS = {"attention": 2, "attention, order 3": 3}


def view_sets(
    model: Model,
    data: Any,
    *,
    view_column: str = "view",
    set_column: str = "set",
    label_column: str = "label",
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Name the class of a thing from the states of 1, 2, 4 .. views of it, by four joins.

    Joins: a linear head on the mean or on the maximum of the states, the vote of a head of single
    views, and two small attentions over the set, which the order of views does not change. Training
    sees up to four views of six tenths of the things; the other things judge.

    Example: sonde recipe view-sets MODEL PHOTOS --set-column object -o views.html

    Parameters
    ----------
    model : Model
        An encoder of single views.
    data : str, path or iterable
        Rows with a view, the thing that it shows, and the class of the thing.
    view_column : str, default="view"
        Column of the view.
    set_column : str, default="set"
        Column of the thing.
    label_column : str, default="label"
        Column of the class.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the things that judge and the views that are shown.
    """
    rows = rows_with("view_sets", data, [view_column, set_column, label_column], LEAST, limit)
    sets, label = _sets(rows, set_column, label_column)
    states = [*states_of(model, [row[view_column] for row in rows], site, progress).values()][-1]
    n_most, draw = min(map(len, sets)), np.random.default_rng(seed)
    views = torch.stack([states[draw.permutation(own)[:n_most]] for own in sets])
    kept, held = apart(label, TEST, seed)
    views = (views - views[kept].mean((0, 1))) / views[kept].std((0, 1)).clamp(min=1e-9)
    sizes = [n for n in (1, 2, 4, 8, 16, 32) if n < n_most] + [n_most]
    right = _judged(views, label, kept, held, sizes, seed)
    score = {join: {n: float(r.mean()) for n, r in by.items()} for join, by in right.items()}
    best = max(score, key=lambda join: score[join][n_most])
    top = score[best][n_most]
    enough = next(n for n in sizes if score[best][n] >= top - NEAR)
    gain = right[best][n_most] * 1.0 - right[best][1]
    helps = float(gain.mean()) > 2 * error_of(gain)
    return Answer(
        question=QUESTION,
        verdict=f"{enough} views by {best}" if helps else "a single view will do",
        level="clear",
        sentence=f"A single view names {max(s[1] for s in score.values()):.1%} of {len(held)} "
        f"things, all {n_most} views {top:.1%} if joined by {best}; with {enough} "
        f"{'view' if enough == 1 else 'views'} it is {score[best][enough]:.1%}.",
        value=float(gain.mean()),
        se=error_of(gain),
        null=0.0,
        n=len(held),
        direction="higher",
        rows=tuple(
            {"join": join} | {f"{n} {'view' if n == 1 else 'views'}": v for n, v in by.items()}
            for join, by in score.items()
        ),
        drawn=curves(
            "Accuracy by the number of views",
            [
                {"views": n, "accuracy": v, "joined by": join}
                for join, by in score.items()
                for n, v in by.items()
            ],
            ChartAxis("views", log=True),
            ChartAxis("accuracy", share=True),
            by="joined by",
        ),
        facts={"things": str(len(sets)), "views of each": str(n_most)},
        advice=(
            "The encoder stays as it is. More views than in training are asked of the attention "
            f"where there are more than {TRAINED}.",
        ),
    )


class _Joined(nn.Module):
    """Attention over the views of a set, a learned query that reads it, and a linear head."""

    def __init__(self, dim: int, n_classes: int, order: int) -> None:
        super().__init__()
        self.first, self.mix = nn.Linear(dim, DIM), Attention(DIM, 4, order=order)
        self.join, self.last = Readout([DIM], DIM, "queries"), nn.Linear(DIM, n_classes)

    def forward(self, views: Tensor) -> Tensor:
        h = self.first(views)
        return self.last(self.join(h + self.mix(h))[:, 0])


def _sets(rows: Any, set_column: str, label_column: str) -> tuple[list[Any], Any]:
    """Return the rows of each thing, and its class."""
    owner = np.array([str(row[set_column]) for row in rows])
    names, first = np.unique(owner, return_index=True)
    sets = [np.flatnonzero(owner == name) for name in names]
    label = np.array([str(rows[i][label_column]) for i in first])
    several = sum(len({str(rows[i][label_column]) for i in own}) > 1 for own in sets)
    fewest = np.unique(label, return_counts=True)[1].min()
    if len(sets) < LEAST or min(map(len, sets)) < 2 or several or fewest < 4:
        raise InputError(
            f"view_sets: expected {LEAST} or more things with two or more views each, and four "
            f"things of each class, got {len(sets)} things, {min(map(len, sets))} views of some, "
            f"{fewest} things of a class, and {several} things of several classes."
        )
    return sets, label


def _judged(
    views: Tensor, label: Any, kept: Any, held: Any, sizes: list[int], seed: int
) -> dict[str, dict[int, Any]]:
    """Return which things each join of each number of views names right."""
    n = min(TRAINED, views.shape[1])
    shown, asked, truth = views[kept][:, :n], views[held], label[held]
    pools = {"mean": lambda v: v.mean(1), "maximum": lambda v: v.amax(1)}
    found: dict[str, dict[int, Any]] = {}
    for name, pool in pools.items():
        several = [pool(shown[:, :k]).numpy() for k in range(1, n + 1)]
        head = linear_head().fit(np.concatenate(several), np.tile(label[kept], n))
        found[name] = {k: head.predict(pool(asked[:, :k]).numpy()) == truth for k in sizes}
    head = linear_head().fit(shown.flatten(0, 1).numpy(), np.repeat(label[kept], n))
    said = head.predict_log_proba(asked.flatten(0, 1).numpy()).reshape(*asked.shape[:2], -1)
    found["vote"] = {k: head.classes_[said[:, :k].sum(1).argmax(1)] == truth for k in sizes}
    kinds, number = np.unique(label[kept], return_inverse=True)
    for name, order in ORDERS.items():
        net = _learned(shown.float(), torch.from_numpy(number), order, seed)
        with torch.no_grad():
            named = {k: net(asked[:, :k].float()).argmax(1).numpy() for k in sizes}
        found[name] = {k: kinds[v] == truth for k, v in named.items()}
    return found


def _learned(shown: Tensor, target: Tensor, order: int, seed: int) -> nn.Module:
    """Return an attention over sets of 1 to all of the shown views."""
    net = drawn(lambda: _Joined(shown.shape[2], int(target.max()) + 1, order), seed)

    def loss(rows: Tensor) -> Tensor:
        some = torch.randperm(shown.shape[1])[: int(torch.randint(1, shown.shape[1] + 1, ()))]
        return cross_entropy(net(shown[rows][:, some]), target[rows])

    minimise(loss, net.parameters(), len(shown), steps=STEPS, seed=seed)
    return net.eval()
