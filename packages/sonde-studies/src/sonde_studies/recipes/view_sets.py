"""Several views of one object: the number needed, and the best way to combine them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model
from sonde.core import ChartAxis, curves
from sonde.report import Answer
from sonde_studies.parts.choice import gain_of_best, unless_untold
from sonde_studies.parts.figures import ACCURACY, compared, gained, is_sure, unfolded
from sonde_studies.parts.heads import SetHead, linear_head
from sonde_studies.parts.noted import note_views
from sonde_studies.parts.owners import groups_told, joined_owners, owners_of
from sonde_studies.parts.rows import apart, check_classes, one_of_each, rows_with
from sonde_studies.parts.states import last_states

QUESTION = "How many views does an answer need, and how should they be joined?"
LEAST, TEST, TRAINED, NEAR = 40, 0.4, 4, 0.01
ORDERS = {"attention": 2, "attention, order 3": 3}


def view_sets(
    model: Model,
    data: Any,
    *,
    view_column: str = "view",
    set_column: str = "set",
    label_column: str = "label",
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Classify an object from the states of 1, 2, 4 .. views, combined in four ways.

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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the things that judge and the views that are shown.
    """
    rows = rows_with("view_sets", data, [view_column, set_column, label_column], LEAST, limit)
    owner, kind = (np.array([str(r[c]) for r in rows]) for c in (set_column, label_column))
    sets = [np.flatnonzero(owner == name) for name in np.unique(owner)]
    label, n_most = np.array([kind[own[0]] for own in sets]), min(map(len, sets))
    mixed = sum(len(set(kind[own])) > 1 for own in sets)
    if n_most < 2 or mixed:
        got = f"{n_most} views of some, and {mixed} things of several classes"
        raise InputError(f"view_sets: expected things of one class with two views, got {got}.")
    of_things = joined_owners(owner, owners_of(data, group_column, limit)[: len(rows)])
    of_things = of_things[[own[0] for own in sets]]
    independent = label[one_of_each(of_things, seed)]
    check_classes("view_sets", independent, LEAST, kinds=1, each=4)
    states = last_states(model, [row[view_column] for row in rows], site, progress)
    order = np.random.default_rng(seed).permutation
    views = torch.stack([states[order(own)[:n_most]] for own in sets])
    kept, held = apart(label, TEST, seed, owner=of_things)
    views = (views - views[kept].mean((0, 1))) / views[kept].std((0, 1)).clamp(min=1e-9)
    sizes = [n for n in (1, 2, 4, 8, 16, 32) if n < n_most] + [n_most]
    said = _said(views[kept], label[kept], views[held], sizes, seed)
    right, score = compared(said, label[held])
    best = max(score, key=lambda join: score[join][n_most])
    enough = next(n for n in sizes if score[best][n] >= score[best][n_most] - NEAR)
    several, single = ({join: r[k] for join, r in right.items()} for k in (n_most, 1))
    gain, shared = gain_of_best(several, single, seed)
    verdict = f"{enough} views by {best}" if is_sure(gain, shared) else "a single view will do"
    title, points = "Accuracy by the number of views", unfolded(score, "joined by", "views")
    worded = {n: f"{n} {'view' if n == 1 else 'views'}" for n in sizes}
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, several, label[held]),
        sentence=f"A single view names {max(s[1] for s in score.values()):.1%} of {len(held)} "
        f"things, all {n_most} views {score[best][n_most]:.1%} if joined by {best}; with "
        f"{worded[enough]} it is {score[best][enough]:.1%}.",
        **gained(gain, shared),
        rows=tuple({"join": j} | {worded[n]: v for n, v in by.items()} for j, by in score.items()),
        drawn=curves(title, points, ChartAxis("views", log=True), ACCURACY, by="joined by"),
        facts={"things": str(len(sets)), "views of each": str(n_most)}
        | groups_told(of_things, "things"),
        advice=(
            f"The encoder stays as it is. Attention learns from at most {TRAINED} views each.",
        ),
    )


def _said(
    shown: Tensor, label: Any, asked: Tensor, sizes: list[int], seed: int
) -> dict[str, dict[int, Any]]:
    """Return the predictions of each combination for each number of views."""
    shown, n = shown[:, :TRAINED], min(TRAINED, shown.shape[1])
    pools = {"mean": lambda v: v.mean(1), "maximum": lambda v: v.amax(1)}
    found: dict[str, dict[int, Any]] = {}
    for name, pool in pools.items():
        several = np.concatenate([pool(shown[:, :k]).numpy() for k in range(1, n + 1)])
        head = linear_head().fit(several, np.tile(label, n))
        found[name] = {k: head.predict(pool(asked[:, :k]).numpy()) for k in sizes}
    head = linear_head().fit(shown.flatten(0, 1).numpy(), np.repeat(label, n))
    votes = head.predict_log_proba(asked.flatten(0, 1).numpy()).reshape(*asked.shape[:2], -1)
    found["vote"] = {k: head.classes_[votes[:, :k].sum(1).argmax(1)] for k in sizes}
    nets = {name: SetHead(order, seed=seed).fit(shown, label) for name, order in ORDERS.items()}
    note_views(head, (*pools, "vote"), nets, sizes, len(label))
    return found | {a: {k: net.predict(asked[:, :k]) for k in sizes} for a, net in nets.items()}
