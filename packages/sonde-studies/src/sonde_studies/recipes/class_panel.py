"""Rows of a class, how well it is answered, and where the model looks for it, in one table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.data import open_inputs, rows_of
from sonde.explain import RawAttention
from sonde.report import Answer
from sonde_studies.parts.figures import check_order, error_of
from sonde_studies.parts.rows import rows_with

QUESTION = "Are weak classes rare, or does the model look elsewhere?"
Box = tuple[float, ...]
LEAST, LEVEL, FEW = 40, 0.05, 4
ROWS, LOOK = "fewer rows", "looks elsewhere"


def class_panel(
    model: Model,
    data: Any,
    *,
    train: Any = None,
    box_column: str = "box",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
    layer: int = -1,
    limit: int | None = None,
    progress: bool = True,
) -> Answer:
    """Put side by side how often each class was shown, how well it is told, and where it is looked.

    For each class: rows it was trained on, recall, precision, what it is taken for, and the share
    of the last attention that lies on the object, over the share of the picture that the object
    takes. Spearman's correlations over classes say which of rows and look goes with recall.

    Example: sonde recipe class-panel MODEL PICTURES --train TRAINING -o classes.html

    Parameters
    ----------
    model : Model
        A classifier of pictures with attention.
    data : str, path or iterable
        Labelled pictures that the model was not trained on, with the box of the object: top, left,
        bottom and right as shares of height and width.
    train : str, path or iterable, optional
        The training data, for counts; those of the data otherwise.
    box_column : str, default="box"
        Column of the box.
    label_column : str, default="label"
        Column of the class.
    classes : sequence of str, optional
        Names of the classes in the order of the model's outputs, where labels are names.
    layer : int, default=-1
        Attention that is read, in the order in which attentions run.
    limit : int, optional
        Read only the first rows.
    """
    rows = rows_with("class_panel", data, [box_column, label_column], LEAST, limit)
    items = [{k: v for k, v in row.items() if k != box_column} | {"id": str(i)}
             for i, row in enumerate(rows)]  # fmt: skip
    options: dict[str, Any] = {"label_column": label_column, "classes": classes}
    found = gather(read(model, items, logits=True, **options), progress)
    if found.logits is None:
        raise InputError("class_panel: expected a model that gives logits, got states alone.")
    label, said = found.label.numpy(), found.logits.argmax(1).numpy()
    names = found.label_names or tuple(map(str, range(found.logits.shape[1])))
    check_order("class_panel", float((label == said).mean()), names)
    order = found.item.tolist()
    boxes = {i: _box(rows[i][box_column], box_column) for i in order}
    looks = _looks(model, items, boxes, layer, options)
    look = np.array([looks[i] for i in order])
    shown = Counter(str(row[label_column]) for row in (rows if train is None else rows_of(train)))
    spelt = {int(c): str(rows[i][label_column]) for i, c in zip(order, label, strict=True)}
    table = [_class(c, names[c], shown[spelt[c]], label, said, look, names)
             for c in sorted(spelt)]  # fmt: skip
    by_rows, by_look = (_rank([r[key] for r in table], [r["recall"] for r in table])
                        for key in ("rows", "attention"))  # fmt: skip
    why = [word for word, (rho, p) in ((ROWS, by_rows), (LOOK, by_look)) if rho > 0 and p < LEVEL]
    weakest = min(table, key=lambda row: row["recall"])
    recall = float(np.mean([row["recall"] for row in table]))
    gap = recall - weakest["recall"]
    return Answer(
        question=QUESTION,
        verdict=" and ".join(why) or "neither tells",
        level="warning" if why else "note",
        sentence=f"Class {weakest['class']} is recognised in {weakest['recall']:.1%} of its "
        f"pictures, all classes in {recall:.1%}; it has {weakest['rows']} rows, and the model "
        f"looks at its object {weakest['attention']:.2f} times as much as its area would get. Over "
        f"classes recall goes with rows at {by_rows[0]:.2f} (p {by_rows[1]:.2g}) and with the look "
        f"at {by_look[0]:.2f} (p {by_look[1]:.2g}).",
        value=gap,
        n=len(label),
        range=(0.0, 1.0),
        direction="lower",
        rows=tuple(sorted(table, key=lambda row: row["recall"])),
        drawn=marks(
            "Recall of each class, and where the model looks for it",
            table,
            ChartAxis("attention", title="attention on the object, over its area"),
            ChartAxis("recall", share=True),
            by="class",
            size=90,
        ),
        facts={"pictures": str(len(label)), "attention": f"layer {layer}, mean over heads"},
        advice=(
            "Attention says what is looked at, not what is done with it: hide the object and look "
            "at the answers before a class is blamed on its look.",
            f"A correlation over {len(table)} classes says that both go together in this data.",
        ),
    )  # fmt: skip


def _class(
    c: int, name: str, shown: int, label: Any, said: Any, look: Any, names: Sequence[str]
) -> dict[str, Any]:
    own, told = label == c, said == c
    wrong = Counter(said[own & ~told].tolist()).most_common(1)
    return {
        "class": name, "rows": shown, "recall": float(told[own].mean()),
        "error": error_of(told[own]), "precision": float(own[told].mean()) if told.any() else None,
        "taken for": names[wrong[0][0]] if wrong else None,
        "attention": round(float(look[own].mean()), 6), "attention error": error_of(look[own]),
    }  # fmt: skip


def _looks(
    model: Model, items: list[dict[str, Any]], boxes: dict[int, Box], layer: int,
    options: dict[str, Any],
) -> dict[int, float]:  # fmt: skip
    """Return the attention in the box of each picture, over what its area would get."""
    inputs = open_inputs(model, items, **options)
    found: dict[int, float] = {}
    for batch in inputs.batches(0, len(inputs)):
        maps = RawAttention(layer).explain(model, batch).by_place.detach().double()
        for name, one in zip(batch.ids, maps, strict=True):
            inside = _inside(boxes[int(name)], one.shape[0], one.shape[1])
            found[int(name)] = float((one * inside).sum() / one.sum() / inside.mean())
    return found


def _inside(box: Box, height: int, width: int) -> torch.Tensor:
    """Return how much of each pixel lies in a box, as a share of the picture."""
    top, left, bottom, right = box
    across = [
        (torch.arange(n + 1).double() / n).clamp(low, high).diff()
        for n, low, high in ((height, top, bottom), (width, left, right))
    ]
    return across[0][:, None] * across[1]


def _box(given: Any, column: str) -> Box:
    box = tuple(float(v) for v in given) if isinstance(given, Sequence) else ()
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise InputError(
            f"class_panel: expected boxes of top, left, bottom, right in [0, 1], got {given!r}. "
            f"Name the column: box_column (now {column!r})."
        )
    return box


def _rank(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's correlation over classes and its p; 0 and 1 if values are all equal."""
    from scipy.stats import spearmanr  # pyright: ignore[reportMissingTypeStubs]

    if len(x) < FEW or min(len(set(x)), len(set(y))) < 2:
        return 0.0, 1.0
    found: Any = spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)
