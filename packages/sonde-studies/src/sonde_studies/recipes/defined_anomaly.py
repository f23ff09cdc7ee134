"""Anomaly detection with a definition of normal that is given at test time."""

from typing import Any

import numpy as np
import torch

from sonde import Model, gather, read
from sonde.core import marks
from sonde.detect import Mahalanobis
from sonde.layers import TargetHead
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.figures import AUROC, auroc_effects, error_of, melted, names
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of
from sonde_studies.parts.rows import apart, check_classes

QUESTION = "Can the definition of normal change after training?"
LEAST, TEST = 80, 0.4
NAMED, BLIND, REFIT, OTHER = "definition given", "no definition", "fitted anew", "other definition"
WAYS = {way: way for way in (NAMED, BLIND, REFIT, OTHER)}


@copies_once()
def defined_anomaly(
    model: Model,
    data: Any,
    *,
    label_column: str | None = None,
    site: str = "auto",
    definitions: int = 8,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Score anomalies by definitions of normal that change from question to question.

    A definition is a set of classes that are normal; all others are anomalies. A row scores by its
    cosine to the nearest class that is not normal less that to the nearest that is. Beside it: a
    detector of no definition, a detector fitted anew for each to normal rows and to others, and the
    definition of another question. Four tenths of the rows judge.

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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws definitions and the rows that judge.
    """
    options = {"label_column": label_column, "group_column": group_column, "limit": limit}
    states = gather(read(model, data, sites=site, logits=False, **options), progress)
    x, label = states.last, states.label.numpy()
    check_classes("defined_anomaly", label, LEAST, kinds=4, each=4)
    kinds = np.unique(label)
    owner = owners_of(data, group_column, limit)[states.item.numpy()]
    kept, held = apart(label, TEST, seed, owner=owner)
    x = (x - x[kept].mean(0)) / x[kept].std(0).clamp(min=1e-9)

    def distance(rows: Any, kind: Any) -> Any:
        return Mahalanobis().fit(x[rows], label=torch.from_numpy(kind[rows])).score(x[held]).numpy()

    def beyond(own: Any) -> Any:
        """Return how much nearer a row is to a class that is not normal."""
        rest = np.setdiff1d(np.arange(len(kinds)), own)
        return (near[:, rest].amax(1) - near[:, own].amax(1)).numpy()

    means = torch.stack([x[kept[label[kept] == kind]].mean(0) for kind in kinds]).float()
    head = TargetHead(x.shape[1], len(kinds), temperature=1.0, project=False)
    near = head(x[held].float(), means).detach().double()
    blind, draw = distance(kept, np.zeros_like(label)), np.random.default_rng(seed)
    drawn = [draw.permutation(len(kinds))[: max(2, len(kinds) // 2)] for _ in range(definitions)]
    named = [str(states.label_names[k]) if states.label_names else str(k) for k in kinds]
    table, effects = list[dict[str, Any]](), np.zeros(len(held))
    for i, own in enumerate(drawn):
        is_normal, other = np.isin(label, kinds[own]), drawn[(i + 1) % len(drawn)]
        refit = distance(kept[is_normal[kept]], label) - distance(kept[~is_normal[kept]], label)
        scores = dict(zip(WAYS, (beyond(own), blind, refit, beyond(other)), strict=True))
        truth = ~is_normal[held]
        row = {w: float(auroc(s, truth, resamples=20).value) for w, s in scores.items()}
        effects += auroc_effects(scores[NAMED], truth) - auroc_effects(blind, truth)
        table.append(row | {"normal": ", ".join(sorted(named[k] for k in own))})
    mean = {way: float(np.mean([row[way] for row in table])) for way in WAYS}
    gain = np.array([row[NAMED] - row[BLIND] for row in table])
    over_rows, over_all = float(np.linalg.norm(effects / len(gain))), None
    if len(gain) > 1:
        over_all = float(np.hypot(error_of(gain), over_rows))
    helps = float(gain.mean()) > 2 * (over_all or np.inf)
    points = melted(table, "normal", "AUROC", "way", WAYS)
    return Answer(
        question=QUESTION,
        verdict="it can" if helps else "it cannot",
        level="clear" if helps else "warning",
        sentence=f"Over {len(table)} definitions the states tell anomalies with a mean AUROC of "
        f"{mean[NAMED]:.3f} if the definition is given, a detector without it with "
        f"{mean[BLIND]:.3f}, a detector that is fitted anew for each with {mean[REFIT]:.3f}.",
        value=mean[NAMED],
        se=over_all,
        null=mean[BLIND],
        n=len(held),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=marks("AUROC of each definition", points, AUROC, names("way"), by="way"),
        facts={f"mean, {arm}": f"{v:.4f}" for arm, v in mean.items()} | groups_told(owner),
        advice=(
            "Every class was seen in training: what is new is which of them are normal. For "
            "classes that nobody has seen take a detector (sonde fit mahalanobis).",
        ),
    )
