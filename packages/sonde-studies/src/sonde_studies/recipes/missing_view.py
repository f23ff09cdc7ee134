"""Fusion of two views, evaluated with one view missing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sonde import Model
from sonde.core import marks
from sonde.report import Answer
from sonde_studies.parts.choice import gain_of_best, is_told, unless_untold
from sonde_studies.parts.figures import ACCURACY, compared, gained, is_sure, names, unfolded
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of
from sonde_studies.parts.rows import apart, check_two, classes_of, rows_with
from sonde_studies.parts.states import column_states

QUESTION = "Does fusion survive a missing view?"
LEAST, TEST, DROPPED = 60, 0.4, 0.3
BOTH, ONE = "both", "one head"


@copies_once()
def missing_view(
    first: Model,
    second: Model,
    data: Any,
    *,
    views: Sequence[str] = ("first", "second"),
    label_column: str = "label",
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Fuse the states of two encoders in four ways, and evaluate each without one view.

    One head on both states, with an absent view replaced by its mean; the same head trained with
    views left out at random; three heads, one for each case; and the mean of what two heads of one
    view each say. Four tenths of the rows judge.

    Example: sonde recipe missing-view FIRST SECOND DATA --views left right -o views.html

    Parameters
    ----------
    first : Model
        Encoder of the first view.
    second : Model
        Encoder of the second view; may be the same.
    data : str, path or iterable
        Rows that each have both views and a label.
    views : sequence of str, default=("first", "second")
        Columns of the two views.
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
        Draws the rows that judge and the views that are left out.
    """
    check_two("missing_view", "views", views)
    rows = rows_with("missing_view", data, [*views, label_column], LEAST, limit)
    label = classes_of("missing_view", rows, label_column, LEAST)
    states = column_states([first, second], rows, views, site, progress)
    owner = owners_of(data, group_column, limit)[: len(rows)]
    kept, held = apart(label, TEST, seed, ordered=False, owner=owner)
    alone = [f"{view} alone" for view in views]
    said = _said(alone, [x[kept] for x in states], label[kept], [x[held] for x in states], seed)
    right, score = compared(said, label[held])
    worst = {arm: min(s[case] for case in alone) for arm, s in score.items()}
    best = max(worst, key=lambda arm: (worst[arm], score[arm][BOTH]))
    case = min(alone, key=lambda c: score[ONE][c])
    fusions = {arm: r[case] for arm, r in right.items() if arm != ONE}
    gain, shared = gain_of_best(fusions, {ONE: right[ONE][case]}, seed)
    survives = is_told({ONE: right[ONE][case]}, label[held])
    verdict = "one head survives" if survives else "none survives"
    verdict = f"take {best}" if is_sure(gain, shared) else verdict
    whole = {arm: r[BOTH] for arm, r in right.items()}
    title, usual = "Accuracy with both views and with one", Counter(label[held]).most_common(1)
    points = unfolded(score, "fusion", "present")
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, whole, label[held], is_bad=verdict != "one head survives"),
        sentence=f"One head on both views is right on {score[ONE][BOTH]:.1%} of {len(held)} rows, "
        f"and with {case} on {score[ONE][case]:.1%}. For {best} it is {score[best][BOTH]:.1%} and "
        f"{score[best][case]:.1%}.",
        **gained(gain, shared),
        rows=tuple({"fusion": arm, **s} for arm, s in score.items()),
        drawn=marks(title, points, ACCURACY, names("fusion"), by="present", size=110, filled=True),
        facts={"views": ", ".join(views), "most frequent class": f"{usual[0][1] / len(held):.3f}"}
        | groups_told(owner),
        advice=(
            "The encoders stay as they are; the heads are linear. Encoders that are trained "
            "together can lean on one view more than these figures show.",
        ),
    )


def _said(
    alone: list[str], seen: list[Any], label: Any, held: list[Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Return the predictions of each fusion on test rows, with both views and with one."""

    def filled(rows: list[Any], gone: Any) -> Any:
        mean = [x.mean(0) for x in seen]
        return np.concatenate([np.where(gone[:, [i]], mean[i], rows[i]) for i in (0, 1)], 1)

    draw, none = np.random.default_rng(seed).random(len(label)), np.zeros((1, 2), bool)
    some = np.stack([draw < DROPPED, draw > 1 - DROPPED], 1)
    one, dropped = (linear_head().fit(filled(seen, gone), label) for gone in (none, some))
    cases = zip((BOTH, *alone), ([0, 0], [0, 1], [1, 0]), strict=True)
    asked = {case: filled(held, np.array([gone]) > 0) for case, gone in cases}
    heads = [linear_head().fit(x, label) for x in seen]
    ends = {case: heads[i].predict(held[i]) for i, case in enumerate(alone)}
    mixed = sum(head.predict_proba(x) for head, x in zip(heads, held, strict=True))
    return {
        ONE: {case: one.predict(x) for case, x in asked.items()},
        "one head, views left out": {case: dropped.predict(x) for case, x in asked.items()},
        "three heads": {BOTH: one.predict(asked[BOTH]), **ends},
        "mean of two heads": {BOTH: heads[0].classes_[np.argmax(mixed, 1)], **ends},
    }
