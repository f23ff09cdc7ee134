"""One fact in two forms, such as a table and a sentence: whether states know that they are one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model
from sonde.core import ChartAxis, curves
from sonde.measure import cka
from sonde.report import Answer
from sonde_studies.parts.figures import error_of, melted
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.rows import apart, rows_with
from sonde_studies.parts.states import states_of

QUESTION = "Does the model see that two forms are one fact?"
WORDED = {"found": "same fact is nearest", "CKA": "CKA of the forms"}
LEAST, TEST = 40, 0.5


def two_forms_of_a_fact(
    model: Model,
    data: Any,
    *,
    forms: Sequence[str] = ("first", "second"),
    label_column: str | None = None,
    sites: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Find the second form of each fact by its first in the states of every site, and back.

    States of each form are centred by their own mean. Beside the share that is found: the linear
    CKA of the forms and, with labels, what a head that learned on the first form reads from the
    second. For tables and prose, two languages, code and its comment, formal and plain words.

    Example: sonde recipe two-forms-of-a-fact MODEL DATA --forms table prose -o forms.html

    Parameters
    ----------
    model : Model
    data : str, path or iterable
        Rows with a fact in both forms.
    forms : sequence of str, default=("first", "second")
        Columns of the two forms.
    label_column : str, optional
        Column of a class that both forms tell, for the head.
    sites : str, default="auto"
        Where the states are read, with commas between sites; "auto" is after every block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that the head learns on.
    """
    named = [*forms, *([label_column] if label_column else [])]
    rows = rows_with("two_forms_of_a_fact", data, named, LEAST, limit)
    if len(forms) != 2:
        raise InputError(f"two_forms_of_a_fact: expected two forms, got {len(forms)}. Name: forms.")
    sides = [
        states_of(model, [row[form] for row in rows], sites, progress, long="truncate")
        for form in forms
    ]
    label = np.array([str(row[label_column]) for row in rows]) if label_column else None
    n, table, hits = len(rows), list[dict[str, Any]](), list[Any]()
    for site, x in sides[0].items():
        y = sides[1][site]
        hits.append(_found(x, y))
        row = {"site": site, "found": float(hits[-1].mean()), "CKA": float(cka(x, y).value)}
        table.append(row if label is None else row | _carried(x, y, label, seed))
    best = int(np.argmax([row["found"] for row in table]))
    share, spread = table[best]["found"], error_of(hits[best])
    sees = share - 1 / n > 2 * max(spread, 1 / n)
    verdict = "one fact" if share > 0.5 else "in part" if sees else "two facts"
    carried = ""
    if label is not None:
        at = table[best]
        carried = (
            f" A head that learned {label_column} on {forms[0]} is right on {at['same form']:.1%} "
            f"of new rows in that form and on {at['other form']:.1%} in the other."
        )
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if share > 0.5 else "warning",
        sentence=f"At {table[best]['site']} the nearest state in the other form is that of the "
        f"same fact for {share:.1%} of {n} facts (chance {1 / n:.1%}); at the last site, "
        f"{table[-1]['site']}, for {table[-1]['found']:.1%}.{carried}",
        value=share,
        se=spread,
        null=1 / n,
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=curves(
            "How alike the forms are at each site",
            melted(table, "site", "share", "what", WORDED),
            ChartAxis("site", title=""),
            "share",
            by="what",
            levels=[{"value": 1 / n, "name": "chance"}],
        ),
        facts={"forms": ", ".join(forms), "facts": str(n)},
        advice=(
            "Facts that are alike are hard to tell apart in any form: compare with the same form "
            "in other words. Words that both forms share help to find them.",
        ),
    )


def _found(x: Tensor, y: Tensor) -> Any:
    """Return how often the nearest state of the other form is the fact's own, mean of both ways."""
    a, b = ((v - v.mean(0)) / (v - v.mean(0)).norm(dim=1, keepdim=True).clamp(min=1e-12)
            for v in (x, y))  # fmt: skip
    near, own = a @ b.T, torch.arange(len(x))
    hits = torch.stack([(near.argmax(axis) == own).double() for axis in (0, 1)])
    return hits.mean(0).numpy()


def _carried(x: Tensor, y: Tensor, label: Any, seed: int) -> dict[str, float]:
    """Return the accuracy of a head of the first form on new rows of both forms."""
    kept, held = apart(label, TEST, seed)
    head = linear_head().fit(x[kept].numpy(), label[kept])
    score = [float(head.score(v[held].numpy(), label[held])) for v in (x, y)]
    return dict(zip(("same form", "other form"), score, strict=True))
