"""A cascade: a cheap model answers, and a strong model where the cheap one is not sure."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.model_selection import cross_val_predict  # pyright: ignore
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, curves
from sonde.report import Answer
from sonde_studies.parts.figures import check_order

QUESTION = "Which of two models should answer?"
SHARES = np.linspace(0, 1, 21)
RESAMPLES, LEAST = 200, 40


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
    options = {"label_column": label_column, "classes": classes, "limit": limit}
    first, second = (
        gather(read(m, data, logits=True, **options), progress) for m in (weak, strong)
    )
    label, right = _checked(first, second)
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(len(label)) < len(label) // 2
    doubt = _doubt(score, first, ~right[0], chosen)

    def half(part: Any) -> tuple[Any, Any, Any]:
        return right[0][part], right[1][part], doubt[part]

    a, b = half(chosen), half(~chosen)
    threshold = _threshold(*a, keep)
    sent = b[2] >= threshold
    accuracy = float(np.where(sent, b[1], b[0]).mean())
    area, rows = _area(*b), _rows(*b, cost)
    held = np.flatnonzero(~chosen)
    draws = (draw.choice(held, len(held)) for _ in range(RESAMPLES))
    spread = float(np.std([_area(*half(drawn)) for drawn in draws]))
    saved = 1 - (1 + cost * sent.mean()) / cost
    helps = area > 2 * spread
    sentence = (
        f"Send an input to the strong model where {score} is {threshold:.3g} or more: "
        f"{sent.mean():.0%} go there and accuracy is {accuracy:.3f} (weak alone "
        f"{b[0].mean():.3f}, strong alone {b[1].mean():.3f}), at {abs(saved):.0%} "
        f"{'less' if saved > 0 else 'more'} cost than the strong model alone."
    )
    return Answer(
        question=QUESTION,
        verdict="route" if helps and saved > 0 else "no gain",
        level="clear" if helps and saved > 0 else "warning",
        sentence=sentence,
        value=area,
        se=spread,
        n=len(label),
        direction="higher",
        rows=tuple(rows[::2]),
        drawn=_drawn(rows, accuracy, float(sent.mean())),
        facts={
            "threshold": f"{threshold:.6g}",
            "score": score,
            "accuracy kept": f"{accuracy / max(b[1].mean(), 1e-9):.4f}",
            "cost": f"{1 + cost * sent.mean():.4g}",
            "rows that judge": str(len(b[0])),
        },
        advice=(
            *_doubts(label, b),
            f"The score finds {area:.0%} ± {spread:.0%} of what routing by the answers would gain "
            "over random routing (averaged over all shares). Both models run on every input here; "
            "in use only the weak one does.",
        ),
    )


def _checked(first: Any, second: Any) -> tuple[Any, list[Any]]:
    """Return the labels, and which rows either model names right."""
    if first.logits is None or second.logits is None or len(first) != len(second):
        raise InputError(
            "route_by_score: expected two classifiers that read all items of the data."
        )
    label, (n, m) = first.label.numpy(), (x.logits.shape[1] for x in (first, second))
    if (label < 0).any() or n != m or len(label) < LEAST:
        raise InputError(
            f"route_by_score: expected {LEAST} or more labelled rows and two models of the same "
            f"classes, got {len(label)} rows, {(label < 0).sum()} of them without a label, and "
            f"{n} and {m} classes. Look at label_column."
        )
    right = [x.logits.argmax(1).numpy() == label for x in (first, second)]
    check_order("route_by_score", max(float(r.mean()) for r in right), first.label_names)
    return label, right


def _doubts(label: Any, judged: Any) -> tuple[str, ...]:
    usual = float(np.unique(label, return_counts=True)[1].max() / len(label))
    if max(judged[0].mean(), judged[1].mean()) > usual:
        return ()
    return (
        f"Neither model is better than always naming the most frequent class ({usual:.3f}). Look "
        "at the labels: do their numbers mean the same as the models' outputs?",
    )


def _doubt(score: str, weak: Any, wrong: Any, chosen: Any) -> Any:
    """Return how unsure the weak model is of each row; a probe learns from the chosen rows only."""
    chance = weak.logits.double().softmax(1)
    if score == "entropy":
        return (-(chance * chance.clamp(min=1e-300).log()).sum(1)).numpy()
    if score == "margin":
        return (1 - chance.topk(2, dim=1).values @ chance.new_tensor([1.0, -1.0])).numpy()
    x = weak.rows[[*weak.rows][-1]].double().numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    if min(wrong[chosen].sum(), (~wrong[chosen]).sum()) < 5:
        raise InputError(
            "route_by_score: expected a weak model that errs on five or more rows and is right on "
            "five or more of the half that learns, for a probe. Take score='entropy'."
        )
    found = np.empty(len(x))
    apart: Any = cross_val_predict(probe, x[chosen], wrong[chosen], method="predict_proba")
    found[chosen] = apart[:, 1]
    found[~chosen] = probe.fit(x[chosen], wrong[chosen]).predict_proba(x[~chosen])[:, 1]
    return found


def _threshold(weak: Any, strong: Any, doubt: Any, keep: float) -> float:
    """Return the highest threshold at which the cascade keeps this share of strong accuracy."""
    order = np.argsort(-doubt, kind="stable")
    routed = weak.sum() + np.r_[0, np.cumsum((strong * 1.0 - weak)[order])]
    k = int(np.flatnonzero(routed >= keep * strong.sum())[0])
    return float(doubt[order[k - 1]]) if k else float(np.nextafter(doubt.max(), np.inf))


def _curve(weak: Any, strong: Any, rank: Any) -> Any:
    """Return the accuracy where the strong model answers the rows of highest rank, by share."""
    gained = np.r_[0, np.cumsum((strong * 1.0 - weak)[np.argsort(-rank, kind="stable")])]
    return (weak.sum() + gained[np.rint(SHARES * len(weak)).astype(int)]) / len(weak)


def _area(weak: Any, strong: Any, doubt: Any) -> float:
    """Return what the score gains over random routing, as a share of what the answers would."""
    random = (1 - SHARES) * weak.mean() + SHARES * strong.mean()
    best = (_curve(weak, strong, strong * 1.0 - weak) - random).mean()
    return float((_curve(weak, strong, doubt) - random).mean() / best) if best > 0 else 0.0


def _rows(weak: Any, strong: Any, doubt: Any, cost: float) -> list[dict[str, float]]:
    known = _curve(weak, strong, strong * 1.0 - weak)
    return [
        {
            "sent": float(share),
            "cost": 1 + cost * float(share),
            "accuracy": float(found),
            "random": float((1 - share) * weak.mean() + share * strong.mean()),
            "oracle": float(best),
        }
        for share, found, best in zip(SHARES, _curve(weak, strong, doubt), known, strict=True)
    ]


def _drawn(rows: list[dict[str, float]], kept: float, sent: float) -> dict[str, Any]:
    names = {"accuracy": "by the score", "random": "at random", "oracle": "by the answers"}
    points = [
        {"sent": row["sent"], "accuracy": row[key], "routing": name}
        for key, name in names.items()
        for row in rows
    ]
    x = ChartAxis("sent", title="share of inputs that the strong model answers", share=True)
    title = "Accuracy of the cascade against the share that goes to the strong model"
    chosen = [{"value": kept, "name": f"chosen: {sent:.0%} sent"}]
    y = ChartAxis("accuracy", share=True)
    return curves(title, points, x, y, by="routing", levels=chosen)
