"""A fact in two forms, such as table and sentence: test whether states match."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde.core import curves
from sonde.measure import cka
from sonde.report import Answer
from sonde_studies.parts.figures import error_of, melted, names
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.rows import apart, check_two, rows_with
from sonde_studies.parts.states import states_of

QUESTION = "Does the model see that two forms are one fact?"
WORDED = {"found": "same fact is nearest", "CKA": "CKA of the forms"}
LEAST, TEST = 40, 0.5


@copies_once(one_of_group=("data",))
def two_forms_of_a_fact(
    model: Model,
    data: Any,
    *,
    forms: Sequence[str] = ("first", "second"),
    label_column: str | None = None,
    sites: str = "auto",
    group_column: str | None = None,
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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that the head learns on.
    """
    check_two("two_forms_of_a_fact", "forms", forms)
    named = [*forms, *([label_column] if label_column else [])]
    rows = rows_with("two_forms_of_a_fact", data, named, LEAST, limit)
    options: dict[str, Any] = {"sites": sites, "progress": progress, "long": "truncate"}
    first, second = (states_of(model, [row[f] for row in rows], **options) for f in forms)
    label = np.array([str(row[label_column]) for row in rows]) if label_column else None
    n, table, hits = len(rows), list[dict[str, Any]](), list[Any]()
    for site, x in first.items():
        hits.append(_found(x, second[site]))
        row = {"site": site, "found": float(hits[-1].mean()), "CKA": float(cka(x, second[site]))}
        table.append(row if label is None else row | _carried(x, second[site], label, seed))
    best = int(np.argmax([row["found"] for row in table]))
    at, share, spread = table[best], table[best]["found"], error_of(hits[best])
    sees = share - 1 / n > 2 * max(spread, 1 / n)
    carried = ""
    if label is not None:
        carried = (
            f" A head that learned {label_column} on {forms[0]} is right on {at['same form']:.1%} "
            f"of new rows in that form and on {at['other form']:.1%} in the other."
        )
    title, chance = "How alike the forms are at each site", {"value": 1 / n, "name": "chance"}
    points = melted(table, "site", "share", "what", WORDED)
    return Answer(
        question=QUESTION,
        verdict="one fact" if share > 0.5 else "in part" if sees else "two facts",
        level="clear" if share > 0.5 else "warning",
        sentence=f"At {at['site']} the nearest state in the other form is that of the "
        f"same fact for {share:.1%} of {n} facts (chance {1 / n:.1%}); at the last site, "
        f"{table[-1]['site']}, for {table[-1]['found']:.1%}.{carried}",
        value=share,
        se=spread,
        null=1 / n,
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=curves(title, points, names("site"), "share", by="what", levels=[chance]),
        facts={"forms": ", ".join(forms), "facts": str(n)},
        advice=(
            "Facts that are alike are hard to tell apart in any form: compare with the same form "
            "in other words. Words that both forms share help to find them.",
        ),
    )


def _found(x: Tensor, y: Tensor) -> Any:
    """Return how often the nearest state of the other form belongs to the same fact."""
    a, b = (torch.nn.functional.normalize(v - v.mean(0), dim=1) for v in (x, y))
    near, own = a @ b.T, torch.arange(len(x))
    return torch.stack([(near.argmax(k) == own).double() for k in (0, 1)]).mean(0).numpy()


def _carried(x: Tensor, y: Tensor, label: Any, seed: int) -> dict[str, float]:
    """Return the accuracy of a head of the first form on new rows of both forms."""
    kept, held = apart(label, TEST, seed, owner=np.arange(len(label)))
    head = linear_head().fit(x[kept].numpy(), label[kept])
    sides = {"same form": x, "other form": y}
    return {k: float(head.score(v[held].numpy(), label[held])) for k, v in sides.items()}
