"""Anomalies by definition: what counts as normal is said at test time, not in training."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.detect import Mahalanobis
from sonde.layers import TargetHead
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.figures import melted
from sonde_studies.parts.rows import apart

QUESTION = "Can the definition of normal change after training?"
LEAST, TEST, DEFINITIONS = 80, 0.4, 8
NAMED, BLIND, REFIT, OTHER = "definition given", "no definition", "fitted anew", "other definition"
WAYS = (NAMED, BLIND, REFIT, OTHER)


def defined_anomaly(
    model: Model,
    data: Any,
    *,
    label_column: str | None = None,
    site: str = "auto",
    definitions: int = DEFINITIONS,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Score anomalies by definitions of normal that change from question to question.

    A definition is a set of classes that are normal; all others are anomalies. A row scores by its
    cosine to the nearest class that is not normal less that to the nearest that is. Beside it: a
    detector of no definition, a detector that is fitted anew for each, and the definition of
    another question. Four tenths of the rows judge.

    Example: sonde recipe defined-anomaly MODEL DATA -o definitions.html

    Parameters
    ----------
    model : Model
    data : str, path or iterable
        Labelled rows of four or more classes.
    label_column : str, optional
        Column of the class, where its name does not say so.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    definitions : int, default=8
        Random definitions that are tried.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws definitions and the rows that judge.
    """
    options = {"label_column": label_column, "limit": limit, "logits": False}
    states = gather(read(model, data, sites=site, **options), progress)
    label = states.label.numpy()
    kinds, counts = np.unique(label[label >= 0], return_counts=True)
    if (label < 0).any() or len(kinds) < 4 or counts.min() < 4 or len(label) < LEAST:
        raise InputError(
            f"defined_anomaly: expected {LEAST} or more labelled rows of four or more classes, "
            f"four rows of each, got {len(label)} rows of {len(kinds)} classes. Look at "
            "label_column."
        )
    x = states.rows[[*states.rows][-1]].double()
    kept, held = apart(label, TEST, seed)
    x = (x - x[kept].mean(0)) / x[kept].std(0).clamp(min=1e-9)
    near = _nearness(x, label, kinds, kept)[held]
    blind = _distance(x, np.zeros_like(label), kept, held)
    draw = np.random.default_rng(seed)
    drawn = [draw.permutation(len(kinds))[: max(2, len(kinds) // 2)] for _ in range(definitions)]
    named = [str(states.label_names[k]) if states.label_names else str(k) for k in kinds]
    table: list[dict[str, Any]] = [
        _tried(x, label, kinds, own, drawn[(i + 1) % len(drawn)], near, blind, kept, held)
        | {"normal": ", ".join(sorted(named[k] for k in own))}
        for i, own in enumerate(drawn)
    ]
    mean = {arm: float(np.mean([row[arm] for row in table])) for arm in WAYS}
    gain = np.array([row[NAMED] - row[BLIND] for row in table])
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else None
    helps = float(gain.mean()) > 2 * (error or np.inf)
    return Answer(
        question=QUESTION,
        verdict="it can" if helps else "it cannot",
        level="clear" if helps else "warning",
        sentence=f"Over {len(table)} definitions the states tell anomalies with a mean AUROC of "
        f"{mean[NAMED]:.3f} if the definition is given, a detector without it with "
        f"{mean[BLIND]:.3f}, a detector that is fitted anew for each with {mean[REFIT]:.3f}.",
        value=mean[NAMED],
        se=error,
        null=mean[BLIND],
        n=len(held),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=marks(
            "AUROC of each definition",
            melted(table, "normal", "AUROC", "way", {arm: arm for arm in WAYS}),
            ChartAxis("AUROC", low=0.0, high=1.0),
            ChartAxis("way", title=""),
            by="way",
        ),
        facts={f"mean, {arm}": f"{v:.4f}" for arm, v in mean.items()},
        advice=(
            "Every class was seen in training: what is new is which of them are normal. For "
            "classes that nobody has seen take a detector (sonde fit mahalanobis).",
        ),
    )


def _tried(
    x: Tensor, label: Any, kinds: Any, own: Any, other: Any, near: Tensor, blind: Any,
    kept: Any, held: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the AUROC of each way to score one definition."""
    is_normal = np.isin(label, kinds[own])
    score = {
        NAMED: _by_definition(near, own),
        BLIND: blind,
        REFIT: _distance(x, label, kept[is_normal[kept]], held),
        OTHER: _by_definition(near, other),
    }
    return {a: float(auroc(s, ~is_normal[held], resamples=20).value) for a, s in score.items()}


def _nearness(x: Tensor, label: Any, kinds: Any, kept: Any) -> Tensor:
    """Return the cosine of each row to the mean of each class."""
    means = torch.stack([x[kept[label[kept] == kind]].mean(0) for kind in kinds])
    head = TargetHead(x.shape[1], len(kinds), temperature=1.0, project=False)
    with torch.no_grad():
        return head(x.float(), means.float()).double()


def _by_definition(near: Tensor, own: Any) -> Any:
    """Return by how much a row is nearer to a class that is not normal."""
    is_normal = torch.zeros(near.shape[1], dtype=torch.bool)
    is_normal[torch.from_numpy(own)] = True
    return (near[:, ~is_normal].amax(1) - near[:, is_normal].amax(1)).numpy()


def _distance(x: Tensor, label: Any, kept: Any, held: Any) -> Any:
    fitted = Mahalanobis().fit(x[kept], label=torch.from_numpy(label[kept]))
    return fitted.score(x[held]).numpy()
