"""A cascade: a cheap model answers, and a strong model where the cheap one is not sure."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from sonde import InputError, Model
from sonde.core import ChartAxis, curves
from sonde.metrics import Cascade
from sonde.report import Answer
from sonde_studies.parts.figures import ACCURACY, check_order, check_usual, melted
from sonde_studies.parts.heads import doubt_of
from sonde_studies.parts.states import graded

QUESTION = "Which of two models should answer?"
SHARES, RESAMPLES, LEAST = np.linspace(0, 1, 21), 200, 40
COLUMNS: tuple[str, ...] = ("sent", "cost", "accuracy", "random", "oracle")
WORDED = {"accuracy": "by the score", "random": "at random", "oracle": "by the answers"}


def route_by_score(
    weak: Model,
    strong: Model,
    data: Any,
    *,
    score: Literal["entropy", "margin", "states"] = "entropy",
    cost: float = 10.0,
    keep: float = 0.99,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Find the score of a weak model above which a strong model should answer instead.

    Half of the data chooses the threshold, the other half judges it: accuracy against the share of
    inputs that go to the strong model, beside random routing and routing that knows the answers.

    Example: sonde recipe route-by-score WEAK STRONG DATA -o answer.html

    Parameters
    ----------
    weak : Model
        A cheap classifier.
    strong : Model
        A better one of the same classes, asked where the weak one is not sure.
    data : str, path or iterable
        Labelled inputs that neither model was trained on.
    score : {"entropy", "margin", "states"}, default="entropy"
        Entropy of the weak model's answer, the lead of its first class over its second, or a probe
        of its last states that learns where it errs.
    cost : float, default=10.0
        Cost of a strong answer, in weak ones.
    keep : float, default=0.99
        Share of the strong model's accuracy that the cascade must keep.
    label_column : str, optional
        Column of the class, where its name does not say so.
    classes : sequence of str, optional
        Names of the classes in the order of the models' outputs, where labels are names.
    limit : int, optional
        Read only the first items.
    seed : int, default=0
        Draws the halves.
    """
    options: dict[str, Any] = {"label_column": label_column, "classes": classes, "limit": limit}
    (first, weaker), (second, stronger) = (
        graded("route_by_score", m, data, LEAST, progress, **options) for m in (weak, strong)
    )
    n, m = (found.logits.shape[1] for found in (first, second))
    if n != m or len(first) != len(second):
        raise InputError(f"route_by_score: expected two models of the same classes, got {n}, {m}.")
    check_order("route_by_score", max(weaker.mean(), stronger.mean()), first.label_names)
    draw, label = np.random.default_rng(seed), first.label.numpy()
    learns = draw.permutation(len(label)) < len(label) // 2
    doubt = doubt_of("route_by_score", score, first, ~weaker, learns)

    def cascade(part: Any) -> Cascade:
        return Cascade(weaker[part], stronger[part], doubt[part])

    threshold, judged = cascade(learns).threshold(keep), cascade(~learns)
    (sent, accuracy), held = judged.at(threshold), np.flatnonzero(~learns)
    draws = (draw.choice(held, len(held)) for _ in range(RESAMPLES))
    area, spread = judged.gain(), float(np.std([cascade(rows).gain() for rows in draws]))
    price, alone = 1 + cost * sent, (float(judged.weak.mean()), float(judged.strong.mean()))
    saved, kept = 1 - price / cost, accuracy / max(alone[1], 1e-9)
    lines = (judged.accuracy(SHARES), judged.random(SHARES), judged.oracle(SHARES))
    columns = zip(SHARES, 1 + cost * SHARES, *lines, strict=True)
    rows = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in columns]
    title = "Accuracy of the cascade against the share that goes to the strong model"
    x = ChartAxis("sent", title="share of inputs that the strong model answers", share=True)
    chosen = {"value": accuracy, "name": f"chosen: {sent:.0%} sent"}
    points = melted(rows, "sent", "accuracy", "routing", WORDED)
    facts = {"threshold": f"{threshold:.6g}", "score": score, "accuracy kept": f"{kept:.4f}"}
    helps = area > 2 * spread and saved > 0
    return Answer(
        question=QUESTION,
        verdict="route" if helps else "no gain",
        level="clear" if helps else "warning",
        sentence=f"{'' if saved > 0 else 'Take the strong one alone: '}{score} of {threshold:.3g} "
        f"or more sends {sent:.0%} to the strong model: accuracy is {accuracy:.3f} (weak alone "
        f"{alone[0]:.3f}, strong alone {alone[1]:.3f}), at {abs(saved):.0%} "
        f"{'less' if saved > 0 else 'more'} cost than the strong model alone.",
        value=area,
        se=spread,
        n=len(label),
        direction="higher",
        rows=tuple(rows[::2]),
        drawn=curves(title, points, x, ACCURACY, by="routing", levels=[chosen]),
        facts=facts | {"cost": f"{price:.4g}", "rows that judge": str(len(held))},
        advice=(
            *check_usual(max(alone), label),
            f"The score finds {area:.0%} ± {spread:.0%} of what routing by the answers would gain "
            "over random routing (averaged over all shares). Both models run on every input here; "
            "in use only the weak one does.",
        ),
    )
