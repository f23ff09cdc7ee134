"""A cascade: a cheap model answers, and a strong model if the cheap one is unsure."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from sonde import InputError, Model
from sonde.core import ChartAxis, curves
from sonde.metrics import Cascade
from sonde.report import Answer
from sonde_studies.parts.cascades import SURE, check_answers, order_p_value, too_few, who_answers
from sonde_studies.parts.figures import ACCURACY, ONE_SIDED, check_order, check_usual, melted
from sonde_studies.parts.heads import doubt_of
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.states import graded

QUESTION = "Which of two models should answer?"
SHARES, RESAMPLES, LEAST = np.linspace(0, 1, 21), 200, 40
COLUMNS: tuple[str, ...] = ("sent", "cost", "accuracy", "random", "oracle")
WORDED = {"accuracy": "by the score", "random": "at random", "oracle": "by the answers"}


@copies_once(one_of_group=("data",))
def route_by_score(
    weak: Model,
    strong: Model,
    data: Any,
    *,
    score: Literal["margin", "entropy", "states"] = "margin",
    cost: float = 10.0,
    keep: float = 0.99,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Find the score of a weak model above which a strong model should answer instead.

    Half of the data chooses the threshold, with a bound for rows that are new; the other half
    judges it: accuracy against the fraction of inputs that go to the strong model, beside random
    routing and routing that knows the answers. "Route" is said only if the cascade is more
    accurate than the weak model, costs less than the strong one, and beats random routing.

    Example: sonde recipe route-by-score WEAK STRONG DATA -o answer.html

    Parameters
    ----------
    weak : Model
        A cheap classifier.
    strong : Model
        A better one of the same classes, asked where the weak one is not sure.
    data : str, path or iterable
        Labelled inputs that neither model was trained on.
    score : {"margin", "entropy", "states"}, default="margin"
        The lead of the weak model's first class over its second, the entropy of its answer, or a
        probe of its last states that learns where it errs.
    cost : float, default=10.0
        Cost of a strong answer, in weak ones.
    keep : float, default=0.99
        Fraction of the strong model's accuracy that the cascade must keep on new inputs, with a
        confidence of 95 %.
    label_column : str, optional
        Column of the class, where its name does not say so.
    classes : sequence of str, optional
        Names of the classes in the order of the models' outputs, where labels are names.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first items.
    seed : int, default=0
        Draws the halves.
    """
    if not cost > 0 or not 0 < keep <= 1:
        raise InputError(
            f"route_by_score: expected cost above 0 and keep in (0, 1], got {cost} and {keep}."
        )
    options: dict[str, Any] = {"label_column": label_column, "classes": classes, "limit": limit}
    (first, weaker), (second, stronger) = (
        graded("route_by_score", m, data, LEAST, progress, **options) for m in (weak, strong)
    )
    check_answers(first, second)
    check_order("route_by_score", max(weaker.mean(), stronger.mean()), first.label_names)
    draw, label = np.random.default_rng(seed), first.label.numpy()
    learns = draw.permutation(len(label)) < len(label) // 2
    doubt = doubt_of("route_by_score", score, first, ~weaker, learns)

    def cascade(part: Any) -> Cascade:
        return Cascade(weaker[part], stronger[part], doubt[part])

    threshold, judged = cascade(learns).threshold(keep, SURE), cascade(~learns)
    (sent, accuracy), held = judged.at(threshold), np.flatnonzero(~learns)
    draws = (draw.choice(held, len(held)) for _ in range(RESAMPLES))
    area, spread = judged.gain(), float(np.std([cascade(rows).gain() for rows in draws]))
    p_order = order_p_value(judged, draw)
    price, alone = 1 + cost * sent, (float(judged.weak.mean()), float(judged.strong.mean()))
    saved, (kept, low, high) = 1 - price / cost, judged.kept(threshold, SURE)
    verdict = who_answers(judged, threshold, is_order=p_order < ONE_SIDED, is_cheap=saved > 0)
    missed = high < keep
    lines = (judged.accuracy(SHARES), judged.random(SHARES), judged.oracle(SHARES))
    columns = zip(SHARES, 1 + cost * SHARES, *lines, strict=True)
    rows = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in columns]
    title = "Accuracy of the cascade against the fraction that goes to the strong model"
    x = ChartAxis("sent", title="fraction of inputs that the strong model answers", share=True)
    chosen = {"value": accuracy, "name": f"chosen: {sent:.0%} sent"}
    points = melted(rows, "sent", "accuracy", "routing", WORDED)
    facts = {"threshold": f"{threshold:.6g}", "score": score, "accuracy kept": f"{kept:.4f}"}
    rule = f"{score} of {threshold:.3g} or more sends {sent:.0%}" if sent < 1 else "All inputs go"
    return Answer(
        question=QUESTION,
        verdict=f"keep {keep:g} is missed" if verdict == "route" and missed else verdict,
        level="clear" if verdict == "route" and not missed else "warning",
        sentence=f"{rule} to the strong model: accuracy is {accuracy:.3f} (weak alone "
        f"{alone[0]:.3f}, strong alone {alone[1]:.3f}), {kept:.1%} of the strong model's "
        f"({low:.1%} to {high:.1%}), at {abs(saved):.0%} {'less' if saved > 0 else 'more'} "
        "cost than the strong model alone.",
        value=area,
        se=spread,
        n=len(label),
        direction="higher",
        rows=tuple(rows[::2]),
        drawn=curves(title, points, x, ACCURACY, by="routing", levels=[chosen]),
        facts=facts | {"cost": f"{price:.4g}", "rows that judge": str(len(held))},
        advice=(
            *check_usual(max(alone), label),
            *too_few(int(learns.sum()), keep, sent),
            f"The score finds {area:.0%} ± {spread:.0%} of what routing by the answers would gain "
            "over random routing (averaged over all fractions). Both models run on every input "
            "here; in use only the weak one does.",
        ),
    )
