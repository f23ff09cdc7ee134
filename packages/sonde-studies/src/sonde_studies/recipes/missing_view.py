"""Fusion of two views: what is left of it where one view is missing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.model_selection import train_test_split  # pyright: ignore
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.data import rows_of
from sonde.report import Answer

QUESTION = "Does fusion survive a missing view?"
LEAST, TEST, DROPPED = 60, 0.4, 0.3
BOTH = "both"


def missing_view(
    first: Model,
    second: Model,
    data: Any,
    *,
    views: Sequence[str] = ("first", "second"),
    label_column: str = "label",
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Fuse the states of two encoders in four ways, and see what each does without one view.

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
        Rows with both views and a label.
    views : sequence of str, default=("first", "second")
        Columns of the two views.
    label_column : str, default="label"
        Column of the class.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge and the views that are left out.
    """
    rows = _rows(data, [*views], label_column, limit)
    label = np.array([str(row[label_column]) for row in rows])
    states = []
    for model, view in zip((first, second), views, strict=True):
        kind = "image" if "image" in model.task else "x" if model.task == "tensor" else "text"
        items = [{kind: row[view], "id": str(i)} for i, row in enumerate(rows)]
        found = gather(read(model, items, sites=site, logits=False), progress)
        states.append(found.rows[[*found.rows][-1]].double().numpy())
    kept, held = train_test_split(
        np.arange(len(label)), test_size=TEST, stratify=label, random_state=seed
    )
    alone = [f"{view} alone" for view in views]
    arms = _arms(alone, [x[kept] for x in states], label[kept], [x[held] for x in states], seed)
    right = {
        arm: {case: said == label[held] for case, said in cases.items()}
        for arm, cases in arms.items()
    }
    score = {arm: {case: float(r.mean()) for case, r in c.items()} for arm, c in right.items()}
    worst = {arm: min(s[case] for case in alone) for arm, s in score.items()}
    one, best = "one head", max(worst, key=lambda arm: (worst[arm], score[arm][BOTH]))
    case = min(alone, key=lambda c: score[one][c])
    gain = right[best][case] * 1.0 - right[one][case]
    spread = float(gain.std() / np.sqrt(len(gain)))
    loses = float(gain.mean()) > 2 * spread
    return Answer(
        question=QUESTION,
        verdict=f"take {best}" if loses else "one head survives",
        level="warning" if loses else "clear",
        sentence=f"One head on both views is right on {score[one][BOTH]:.1%} of {len(held)} rows, "
        f"and with {case} on {score[one][case]:.1%}. For {best} it is {score[best][BOTH]:.1%} and "
        f"{score[best][case]:.1%}.",
        value=float(gain.mean()),
        se=spread,
        n=len(held),
        direction="higher",
        rows=tuple({"fusion": arm, **s} for arm, s in score.items()),
        drawn=marks(
            "Accuracy with both views and with one",
            [
                {"fusion": arm, "accuracy": value, "present": case}
                for arm, s in score.items()
                for case, value in s.items()
            ],
            ChartAxis("accuracy", share=True),
            ChartAxis("fusion", title=""),
            by="present",
            size=110,
            filled=True,
        ),
        facts={"views": ", ".join(views), "most frequent class": f"{_most(label[held]):.3f}"},
        advice=(
            "The encoders stay as they are; the heads are linear. Encoders that are trained "
            "together can lean on one view more than these figures show.",
        ),
    )


def _rows(data: Any, views: list[str], label: str, limit: int | None) -> list[Any]:
    rows, columns = rows_of(data, limit), [*views, label]
    missing = [name for name in columns if any(name not in row for row in rows)]
    kinds = [str(row.get(label)) for row in rows]
    if len(views) != 2 or missing or len(rows) < LEAST or len(set(kinds)) < 2:
        raise InputError(
            f"missing_view: expected {LEAST} or more rows of two or more classes with two views "
            f"and a label, got {len(rows)} rows of {len(set(kinds))} classes, the views {views}, "
            f"and no column {', '.join(missing) or 'missing'}. Name them: views, label_column."
        )
    return rows


def _arms(
    alone: list[str], seen: list[Any], label: Any, held: list[Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Return what each fusion says of the held rows, with both views and with one."""
    mean = [x.mean(0, keepdims=True) for x in seen]

    def absent(rows: list[Any], gone: list[Any]) -> Any:
        filled = [np.where(g[:, None], m, x) for x, m, g in zip(rows, mean, gone, strict=True)]
        return np.concatenate(filled, 1)

    def cases(n: int) -> dict[str, list[Any]]:
        no, yes = np.zeros(n, bool), np.ones(n, bool)
        return dict(zip((BOTH, *alone), ([no, no], [no, yes], [yes, no]), strict=True))

    draw = np.random.default_rng(seed).random(len(label))
    some = [draw < DROPPED, draw > 1 - DROPPED]
    both = cases(len(label))[BOTH]
    plain, dropped = (_head(absent(seen, gone), label) for gone in (both, some))
    heads = [_head(x, label) for x in seen]
    asked = {case: absent(held, gone) for case, gone in cases(len(held[0])).items()}
    single = [head.predict(x) for head, x in zip(heads, held, strict=True)]
    mixed = sum(head.predict_proba(x) for head, x in zip(heads, held, strict=True))
    ends = dict(zip(alone, single, strict=True))
    return {
        "one head": {case: plain.predict(x) for case, x in asked.items()},
        "one head, views left out": {case: dropped.predict(x) for case, x in asked.items()},
        "three heads": {BOTH: plain.predict(asked[BOTH]), **ends},
        "mean of two heads": {BOTH: heads[0].classes_[np.argmax(mixed, 1)], **ends},
    }


def _head(x: Any, label: Any) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(x, label)


def _most(label: Any) -> float:
    return float(np.unique(label, return_counts=True)[1].max() / len(label))
