"""Frequency, accuracy and attribution of each class, in one table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sonde import Model
from sonde.core import ChartAxis, marks
from sonde.data import rows_of
from sonde.report import Answer
from sonde_studies.parts.boxes import box_of, looks_at
from sonde_studies.parts.figures import check_order, error_of, rank_agreement
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.rows import rows_with
from sonde_studies.parts.states import graded

QUESTION = "Are weak classes rare, or does the model look elsewhere?"
LEAST, LEVEL, FEW = 40, 0.05, 4
REASONS = {"rows": "fewer rows", "attention": "looks elsewhere"}


@copies_once("train", one_of_group=("data",))
def class_panel(
    model: Model,
    data: Any,
    *,
    train: Any = None,
    box_column: str = "box",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
    layer: int = -1,
    group_column: str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Answer:
    """Show for each class its training rows, its accuracy, and the attention on its object.

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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first rows.
    """
    rows = rows_with("class_panel", data, [box_column, label_column], LEAST, limit)
    named = [{**row, "id": str(i)} for i, row in enumerate(rows)]
    items = [{k: v for k, v in row.items() if k not in (box_column, group_column)} for row in named]
    options: dict[str, Any] = {"label_column": label_column, "classes": classes}
    found, right = graded("class_panel", model, items, LEAST, progress, **options)
    label, said, order = found.label.numpy(), found.logits.argmax(1).numpy(), found.item.tolist()
    names = found.label_names or tuple(map(str, range(found.logits.shape[1])))
    check_order("class_panel", float(right.mean()), names)
    boxes = {i: box_of("class_panel", rows[i][box_column], box_column) for i in order}
    looks = looks_at(model, items, boxes, layer, **options)
    look = np.array([looks[i] for i in order])
    shown = Counter(str(row[label_column]) for row in (rows if train is None else rows_of(train)))
    table = list[dict[str, Any]]()
    for c in np.unique(label).tolist():
        own, told = label == c, said == c
        wrong = Counter(said[own & ~told].tolist()).most_common(1)
        spelt = str(rows[order[int(np.flatnonzero(own)[-1])]][label_column])
        precision = float(own[told].mean()) if told.any() else None
        row = {"class": names[c], "rows": shown[spelt], "recall": float(told[own].mean())}
        row |= {"error": error_of(told[own]), "precision": precision}
        row |= {"taken for": names[wrong[0][0]] if wrong else None}
        row |= {"attention": round(float(look[own].mean()), 6)}
        table.append(row | {"attention error": error_of(look[own])})
    ranked = sorted(table, key=lambda row: row["recall"])
    weakest, recalls = ranked[0], [row["recall"] for row in table]
    ranks = {key: rank_agreement([row[key] for row in table], recalls, FEW) for key in REASONS}
    why = [REASONS[key] for key, (rho, p) in ranks.items() if rho > 0 and p < LEVEL]
    recall = float(np.mean(recalls))
    title = "Recall of each class, and where the model looks for it"
    x = ChartAxis("attention", title="attention on the object, over its area")
    (rho, p), (of_look, p_look) = ranks.values()
    return Answer(
        question=QUESTION,
        verdict=" and ".join(why) or "neither tells",
        level="warning" if why else "note",
        sentence=f"Class {weakest['class']} is recognised in {weakest['recall']:.1%} of its "
        f"pictures, all classes in {recall:.1%}; it has {weakest['rows']} rows, and the model "
        f"looks at its object {weakest['attention']:.2f} times as much as its area would get. Over "
        f"classes recall goes with rows at {rho:.2f} (p {p:.2g}) and with the look "
        f"at {of_look:.2f} (p {p_look:.2g}).",
        value=recall - weakest["recall"],
        n=len(label),
        range=(0.0, 1.0),
        direction="lower",
        rows=tuple(ranked),
        drawn=marks(title, table, x, ChartAxis("recall", share=True), by="class", size=90),
        facts={"pictures": str(len(label)), "attention": f"layer {layer}, mean over heads"},
        advice=(
            "Attention says what is looked at, not what is done with it: hide the object and look "
            "at the answers before a class is blamed on its look.",
            f"A correlation over {len(table)} classes says that both go together in this data.",
        ),
    )
