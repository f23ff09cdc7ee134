"""Alternating training of parameter groups: its gain with equally many steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sonde import InputError, Model
from sonde.core import curves
from sonde.data import open_inputs
from sonde.report import Answer
from sonde.train import Scope
from sonde_studies.arms import note_again, part
from sonde_studies.parts.choice import unless_untold
from sonde_studies.parts.figures import ACCURACY, gained, is_sure
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.states import graded, item_parts, tuned_copy

QUESTION = "Is it better to train groups of parameters in turn?"
LEAST, TEST = 60, 0.4
JOINT, TURNS, RANDOM = "all at once", "groups in turn", "random groups in turn"


@copies_once()
def alternating_fields(
    model: Model,
    data: Any,
    *,
    groups: Sequence[str] = (),
    epochs: int = 12,
    rate: float = 1e-3,
    batch_size: int = 32,
    label_column: str | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Train copies of a classifier all at once, by groups in turn, and by random groups in turn.

    Each epoch moves all parameters, or one group and no other; steps, order and rate are the same.
    Six tenths of the rows train, the others judge after every round of groups.

    Example: sonde recipe alternating-fields MODEL DATA --groups "encoder.*" "head.*" -o turns.html

    Parameters
    ----------
    model : Model
        The classifier to start from. It is not changed.
    data : str, path or iterable
        Labelled rows.
    groups : sequence of str, default=()
        Patterns of parameter names, one for each group; by default the two halves of the list.
    epochs : int, default=12
        Passes over the rows that train.
    rate : float, default=0.001
        Rate of Adam, which starts anew in each epoch.
    batch_size : int, default=32
        Rows of a step.
    label_column : str, optional
        Column of the class, where its name does not say so.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge, random groups and the order of the training.
    """
    options: dict[str, Any] = {"label_column": label_column, "limit": limit}
    options |= {"group_column": group_column}
    graded("alternating_fields", model, data, LEAST, progress, **options)
    inputs = open_inputs(model, data, batch_size=batch_size, **options)
    draw = np.random.default_rng(seed)
    ours, held, told = item_parts(inputs, data, TEST, draw, group_column, limit)
    named = [name for name, p in model.module.named_parameters() if p.is_floating_point()]
    if len(named) < 2:
        raise InputError(f"alternating_fields: expected two or more parameters, got {len(named)}.")
    halves = [named[: len(named) // 2], named[len(named) // 2 :]]
    turns = [[g] for g in groups] if groups else halves
    deck = [named[int(i)] for i in draw.permutation(len(named))]
    by_lot = [deck[i :: len(turns)] for i in range(len(turns))]
    arms: dict[str, list[list[str]]] = {JOINT: [["*"]], TURNS: turns, RANDOM: by_lot}
    table, last, label = list[dict[str, Any]](), dict[str, Any](), np.zeros(0)
    for arm, patterns in arms.items():
        other = model
        for epoch in range(epochs):
            own = tuple(patterns[epoch % len(patterns)])
            how: dict[str, Any] = {"label": arm, "epochs": 1, "progress": progress}
            scope = Scope("pattern", patterns=own)
            with part(arm):
                other, _ = tuned_copy(other, ours, scope, rate=rate, seed=seed + epoch, **how)
            if epoch + 1 == epochs // len(turns):
                note_again(f"{arm}, half the epochs", arm)
            if (epoch + 1) % len(turns) == 0 or epoch + 1 == epochs:
                found, right = graded(
                    "alternating_fields", other, data, LEAST, progress, check=False, **options
                )
                judges = np.isin(found.item.numpy(), held)
                last[arm], label = right[judges], found.label.numpy()[judges]
                table.append({"arm": arm, "epochs": epoch + 1, "accuracy": float(last[arm].mean())})
    score = {arm: float(r.mean()) for arm, r in last.items()}
    gain = last[TURNS] * 1.0 - last[JOINT]
    verdict = "in turn" if is_sure(gain) else "at once" if is_sure(-gain) else "no difference"
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, last, label),
        sentence=f"After {epochs} epochs accuracy is {score[JOINT]:.3f} if all parameters move at "
        f"once, {score[TURNS]:.3f} if groups move in turn, {score[RANDOM]:.3f} if random groups "
        f"do: on {len(gain)} rows that did not train.",
        **gained(gain),
        rows=tuple(table),
        drawn=curves("Accuracy by epoch", table, "epochs", ACCURACY, by="arm"),
        facts={f"group {i + 1}": ", ".join(g)[:80] for i, g in enumerate(turns)} | told,
        advice=(
            "In turn each parameter moves in fewer steps: at the same number of epochs that alone "
            "costs something. What groups gain over random groups is due to the groups.",
        ),
    )
