"""Two tasks on one trunk: the block where their gradients disagree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sonde import InputError, Model, gather, read
from sonde.core import curves
from sonde.measure import gradient_conflict
from sonde.report import Answer
from sonde_studies.parts.figures import melted, names
from sonde_studies.parts.forks import least_alike, task_gradients, task_head
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.rows import check_two, rows_with

QUESTION = "Where should two tasks part?"
WORDED = {"agreement": "two tasks", "of one task": "a task and itself"}
LEAST, LEVEL = 128, 0.025
"""Rows, and how often one of all blocks is named falsely."""


@copies_once(one_of_group=("data",))
def where_tasks_part(
    model: Model,
    data: Any,
    *,
    tasks: Sequence[str] = ("first", "second"),
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Compare the gradients of two tasks at each block of a trunk that serves both.

    A linear head on the states of the last block learns each task on half of the rows. On the other
    half its loss is differentiated for the weights of each block: the first task's on even batches,
    the second's on odd batches. Where the mean gradients agree less than those of batches that are
    dealt to two tasks by lot, sharing costs most: that is tested over all blocks together.

    Example: sonde recipe where-tasks-part MODEL DATA --tasks language topic -o fork.html

    Parameters
    ----------
    model : Model
        The trunk, trained or not.
    data : str, path or iterable
        Rows with an input and the label of each task.
    tasks : sequence of str, default=("first", "second")
        Columns of the two labels.
    site : str, default="auto"
        Where the heads read; "auto" is after the last block.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the halves, and the weights of a large block that are looked at.
    """
    check_two("where_tasks_part", "tasks", tasks)
    rows = rows_with("where_tasks_part", data, [*tasks], LEAST, limit)
    items = [{k: v for k, v in row.items() if k not in {*tasks, group_column}} for row in rows]
    blocks = [s.site for s in read(model, items, check=False).schema]
    found = gather(read(model, items, sites=site, logits=False), progress)
    kinds = [np.unique([str(r[t]) for r in rows], return_inverse=True) for t in tasks]
    if len(found) != len(rows) or min(len(named) for named, _ in kinds) < 2:
        raise InputError(
            "where_tasks_part: expected rows that the model reads whole and two or more classes "
            f"of each task, got {len(found)} of {len(rows)} rows and "
            f"{', '.join(str(len(named)) for named, _ in kinds)} classes."
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    kept, held = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
    heads = [task_head(found.last[kept], truth[kept]) for _, truth in kinds]
    truths, items = [torch.from_numpy(truth[held]) for _, truth in kinds], [items[i] for i in held]
    key = [*found.rows][-1]
    parts, task = task_gradients(model, items, key, heads, truths, blocks, seed)
    least, p = least_alike(parts, task, seed)
    table = list[dict[str, Any]]()
    for name, part in parts.items():
        both = gradient_conflict(part, task)
        row = {"block": name, "agreement": float(both.value), "of one task": both.attainable}
        table.append(row | {"standard error": both.se})
    at = next(row for row in table if row["block"] == least)
    points = melted(table, "block", "cosine", "between", WORDED)
    title = "Agreement of gradients by block"
    return Answer(
        question=QUESTION,
        verdict=f"part at {at['block']}" if p <= LEVEL else "share all",
        level="clear",
        sentence=f"The tasks {tasks[0]} and {tasks[1]} agree least at {at['block']}: the cosine of "
        f"their mean gradients is {at['agreement']:.2f}, where a single task would have "
        f"{at['of one task']:.2f}. It is {table[0]['agreement']:.2f} at the first block and "
        f"{table[-1]['agreement']:.2f} at the last.",
        value=at["agreement"],
        null=at["of one task"],
        n=len(rows),
        range=(-1.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=curves(title, points, names("block"), "cosine", by="between"),
        facts={"heads read": key, "batches": str(len(task)), "p of the largest gap": f"{p:.3g}"},
        advice=(
            "This is the model as it is, before the tasks are trained on it. Blocks below the "
            "named one may be shared; train both forks to be sure.",
        ),
    )
