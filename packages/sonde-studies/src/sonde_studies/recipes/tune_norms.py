"""Tuning on a new domain: which parameters have to move, and what that costs the old domain."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.data import ItemInputs, open_inputs
from sonde.measure import cka
from sonde.report import Answer
from sonde.train import Scope
from sonde.weights import mean_loss, tuned
from sonde_studies.parts.figures import check_order, error_of

QUESTION = "Which parameters should move on a new domain?"
LEAST, TEST = 40, 0.5
RULES = {"norms": "norms", "biases": "bias", "the last block": "top", "all": "all"}


def tune_norms(
    model: Model,
    target: Any,
    source: Any,
    *,
    epochs: int = 10,
    rate: float = 1e-3,
    batch_size: int = 32,
    site: str = "auto",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Tune a copy of a classifier on a new domain by norms, biases, the last block, and all.

    Half of the new domain trains, the other half judges; the old domain only judges. For each
    choice: accuracy on both, the share of parameters that move, and how far the states of the old
    domain move. The smallest choice that is as good as the best is recommended.

    Example: sonde recipe tune-norms MODEL TARGET SOURCE -o tuning.html

    Parameters
    ----------
    model : Model
        A classifier that was trained on the old domain.
    target : str, path or iterable
        Labelled examples of the new domain.
    source : str, path or iterable
        Labelled examples of the old domain that the model was not trained on.
    epochs : int, default=10
        Passes over the half that trains.
    rate : float, default=0.001
        Rate of Adam.
    batch_size : int, default=32
        Examples of a step.
    site : str, default="auto"
        Where states are compared; "auto" is after every block.
    label_column : str, optional
        Column of the class, where its name does not say so.
    classes : sequence of str, optional
        Names of the classes in the order of the outputs, where labels are names.
    limit : int, optional
        Read only the first examples of each domain.
    seed : int, default=0
        Draws the halves and the order of the training.
    """
    options = {"label_column": label_column, "classes": classes, "limit": limit}
    inputs = open_inputs(model, target, batch_size=batch_size, **options)
    ours, held = _halved(inputs, seed)

    def judged(other: Model) -> tuple[Any, Any, Any]:
        sides = [
            gather(read(other, d, sites=site, logits=True, check=False, **options), progress)
            for d in (target, source)
        ]
        new, old = (_right(side) for side in sides)
        return new[np.isin(sides[0].item.numpy(), held)], old, sides[1].rows

    before = judged(model)
    check_order("tune_norms", float(before[1].mean()), inputs.label_names)
    found: dict[str, tuple[Any, Any, Any]] = {}
    share = {"before": 0.0}
    for name, rule in RULES.items():
        module = deepcopy(model.module)
        try:
            with Scope(rule).on(module) as moving:  # pyright: ignore[reportArgumentType]
                share[name] = moving.share
                tuned(model, ours, mean_loss, rate=rate, epochs=epochs, seed=seed,
                      label=f"tune {name}", start=module, progress=progress)  # fmt: skip
        except InputError:
            if rule == "all":
                raise
            continue  # a model without norms, biases or blocks
        found[name] = judged(replace(model, module=module))
    score = {n: (float(v[0].mean()), float(v[1].mean())) for n, v in found.items()}
    best = max(score, key=lambda name: score[name][0])
    ties = [n for n, v in found.items() if _ties(v[0], found[best][0])]
    chosen = min(ties, key=lambda name: share[name])
    gain = found[chosen][0] * 1.0 - before[0]
    helps = float(gain.mean()) > 2 * error_of(gain)
    start = (float(before[0].mean()), float(before[1].mean()))
    alike = {name: _alike(before[2], v[2]) for name, v in found.items()}
    (new, old), alike = score["all"], {"before": {}} | alike
    score = {"before": start} | score
    return Answer(
        question=QUESTION,
        verdict=f"tune {chosen}" if helps else "no gain",
        level="clear" if helps else "warning",
        sentence=f"Tuning {chosen} ({share[chosen]:.1%} of the parameters) takes accuracy on the "
        f"new domain from {start[0]:.3f} to {score[chosen][0]:.3f} and on the old one from "
        f"{start[1]:.3f} to {score[chosen][1]:.3f}"
        + ("." if chosen == "all" else f"; tuning all to {new:.3f} and {old:.3f}."),
        value=float(gain.mean()),
        se=error_of(gain),
        null=0.0,
        n=len(gain),
        direction="higher",
        rows=tuple(_rows(score, share, alike)),
        drawn=_drawn(score),
        facts={"trained on": str(len(ours)), "epochs": str(epochs), "rate": f"{rate:g}"},
        advice=(
            "CKA is that of the old domain's states before and after: 1 is unmoved. Choices tie "
            "where the difference is below two standard errors; of these the smallest is taken.",
        ),
    )


def _halved(inputs: ItemInputs, seed: int) -> tuple[ItemInputs, Any]:
    """Return the examples that train, and the numbers of the items that judge."""
    draw = np.random.default_rng(seed).permutation(len(inputs))
    held = np.unique(inputs.source_rows[draw[: int(TEST * len(inputs))]])
    return inputs.at(np.flatnonzero(~np.isin(inputs.source_rows, held))), held


def _right(side: Any) -> Any:
    label = side.label.numpy()
    known = (label >= 0).sum()
    if side.logits is None or known < max(LEAST, len(label)):
        raise InputError(
            f"tune_norms: expected a classifier and {LEAST} or more examples of each domain, all "
            f"of them labelled, got {known} labels of {len(label)}. Look at label_column."
        )
    return side.logits.argmax(1).numpy() == label


def _ties(right: Any, best: Any) -> bool:
    lost = best * 1.0 - right
    return bool(lost.mean() <= 2 * error_of(lost))


def _alike(before: Any, after: Any) -> dict[str, float]:
    return {key: float(cka(x, after[key]).value) for key, x in before.items()}


def _rows(
    score: dict[str, tuple[float, float]], share: Any, alike: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    return [
        {"moved": name, "share": share[name], "new domain": new, "old domain": old}
        | {f"CKA {key}": value for key, value in alike[name].items()}
        for name, (new, old) in score.items()
    ]


def _drawn(score: dict[str, tuple[float, float]]) -> dict[str, Any]:
    rows = [
        {"moved": name, "accuracy": value, "domain": domain}
        for name, both in score.items()
        for domain, value in zip(("new", "old"), both, strict=True)
    ]
    x = ChartAxis("accuracy", share=True, low=0.0, high=1.0)
    title = "Accuracy on both domains by what was tuned"
    return marks(title, rows, x, ChartAxis("moved", title=""), by="domain", size=90)
