"""Training groups of parameters in turn: whether it helps, at equal steps."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, curves
from sonde.data import open_inputs
from sonde.report import Answer
from sonde.train import Scope
from sonde.weights import mean_loss, tuned
from sonde_studies.recipes._parts import error_of

QUESTION = "Is it better to train groups of parameters in turn?"
LEAST, TEST = 60, 0.4
JOINT, TURNS, RANDOM = "all at once", "groups in turn", "random groups in turn"


def alternating_fields(
    model: Model,
    data: Any,
    *,
    groups: Sequence[str] = (),
    epochs: int = 12,
    rate: float = 1e-3,
    batch_size: int = 32,
    label_column: str | None = None,
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
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge, random groups and the order of the training.
    """
    options = {"label_column": label_column, "limit": limit}
    judging: dict[str, Any] = options | {"logits": True, "check": False}
    inputs = open_inputs(model, data, batch_size=batch_size, **options)
    draw = np.random.default_rng(seed)
    held = np.unique(inputs.source_rows[draw.permutation(len(inputs))[: int(TEST * len(inputs))]])
    ours = inputs.at(np.flatnonzero(~np.isin(inputs.source_rows, held)))
    named = [name for name, p in model.module.named_parameters() if p.is_floating_point()]
    if len(inputs) < LEAST or not inputs.label_names or len(named) < 2:
        raise InputError(
            f"alternating_fields: expected {LEAST} or more labelled rows and two or more "
            f"parameters, got {len(inputs)} rows, {len(inputs.label_names)} classes and "
            f"{len(named)} parameters. Look at label_column."
        )
    halves = [named[: len(named) // 2], named[len(named) // 2 :]]
    turns = [[g] for g in groups] if groups else halves
    deck = [named[int(i)] for i in draw.permutation(len(named))]
    arms: dict[str, list[list[str]]] = {
        JOINT: [["*"]], TURNS: turns, RANDOM: [deck[i :: len(turns)] for i in range(len(turns))],
    }  # fmt: skip

    table, last = list[dict[str, Any]](), dict[str, Any]()
    for arm, patterns in arms.items():
        module = deepcopy(model.module)
        for epoch in range(epochs):
            own = tuple(patterns[epoch % len(patterns)])
            with Scope("pattern", patterns=own).on(module):
                module = tuned(model, ours, mean_loss, rate=rate, epochs=1, seed=seed + epoch,
                               label=arm, start=module, progress=progress)  # fmt: skip
            if (epoch + 1) % len(turns) == 0 or epoch + 1 == epochs:
                found = gather(read(replace(model, module=module), data, **judging), progress)
                last[arm] = _right(found, held)
                table.append({"arm": arm, "epochs": epoch + 1, "accuracy": float(last[arm].mean())})
    score = {arm: float(r.mean()) for arm, r in last.items()}
    gain = last[TURNS] * 1.0 - last[JOINT]
    error = error_of(gain)
    better, worse = gain.mean() > 2 * error, gain.mean() < -2 * error
    return Answer(
        question=QUESTION,
        verdict="in turn" if better else "at once" if worse else "no difference",
        level="clear",
        sentence=f"After {epochs} epochs accuracy is {score[JOINT]:.3f} if all parameters move at "
        f"once, {score[TURNS]:.3f} if groups move in turn, {score[RANDOM]:.3f} if random groups "
        f"do: on {len(gain)} rows that did not train.",
        value=float(gain.mean()),
        se=error,
        null=0.0,
        n=len(gain),
        direction="higher",
        rows=tuple(table),
        drawn=curves(
            "Accuracy by epoch", table, "epochs", ChartAxis("accuracy", share=True), by="arm"
        ),
        facts={f"group {i + 1}": ", ".join(g)[:80] for i, g in enumerate(turns)},
        advice=(
            "In turn each parameter moves in fewer steps: at the same number of epochs that alone "
            "costs something. What groups gain over random groups is due to the groups.",
        ),
    )


def _right(found: Any, held: Any) -> Any:
    """Return which of the held rows are named right."""
    if found.logits is None:
        raise InputError("alternating_fields: expected a classifier that gives logits.")
    said = found.logits.argmax(1).numpy() == found.label.numpy()
    return said[np.isin(found.item.numpy(), held)]
