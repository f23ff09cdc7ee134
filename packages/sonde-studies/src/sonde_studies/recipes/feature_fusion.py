"""Fusion of several sources, such as encoders and hand-made numbers, against the best of them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from sklearn.decomposition import PCA  # pyright: ignore[reportMissingTypeStubs]

from sonde import Model, gather, read
from sonde.core import marks
from sonde.report import Answer
from sonde_studies.parts.choice import gain_of_best, unless_untold
from sonde_studies.parts.figures import WHOLE_ACCURACY, gained, is_sure, most_frequent, names
from sonde_studies.parts.heads import AutoencoderCode, linear_head, lines_heads
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of
from sonde_studies.parts.rows import apart, check_classes, check_states
from sonde_studies.parts.states import side_by_side, states_of_columns

QUESTION = "Do two encoders together say more than the better one?"
LEAST, TEST, NARROW = 60, 0.4, 10
JOINT, SMALL = "both, side by side", "both, at a tenth of the width"


@copies_once()
def feature_fusion(
    first: Model,
    second: Model,
    data: Any,
    *,
    third: Model | None = None,
    numbers: Sequence[str] = (),
    lines: Sequence[str] = (),
    hidden: int = 0,
    summary: Literal["components", "autoencoder"] = "components",
    label_column: str | None = None,
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Read the label from the states of each encoder, of all together, and of a narrow summary.

    Linear heads on standardised states, and small nets if ``hidden`` is set. The summary is a tenth
    as wide as all units together. If there are more than two sources, each is also left out in
    turn. Four tenths of the rows judge.

    Example: sonde recipe feature-fusion FIRST SECOND DATA -o fusion.html

    Parameters
    ----------
    first : Model
    second : Model
    data : str, path or iterable
        Labelled rows that all encoders read.
    third : Model, optional
        A third encoder.
    numbers : sequence of str, default=()
        Columns of numbers, made by hand or by another program. Together they are one more source.
    lines : sequence of str, default=()
        Columns that the first encoder reads one by one, such as the sentences of a text or the
        quarters of a picture. Their states side by side are one more source.
    hidden : int, default=0
        Width of hidden layers of each source, and of each line, before they are joined by one layer
        over all. Adds that net, and one of as many parameters in which all are joined first. 0
        trains linear heads alone.
    summary : {"components", "autoencoder"}, default="components"
        What makes the narrow summary: principal components, or an autoencoder with three hidden
        layers.
    label_column : str, optional
        Column of the class, where its name does not say so.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge.
    """
    models = {"first": first, "second": second} | ({} if third is None else {"third": third})
    options: dict[str, Any] = {"label_column": label_column, "limit": limit, "logits": False}
    options |= {"group_column": group_column, "ignore_columns": [*numbers, *lines] or None}
    found = {n: gather(read(m, data, sites=site, **options), progress) for n, m in models.items()}
    label = found["first"].label.numpy()
    known = np.flatnonzero(label >= 0)
    check_classes("feature_fusion", label[known], LEAST)
    at = found["first"].item.numpy()
    states = {name: part.last.numpy() for name, part in found.items()}
    check_states("feature_fusion", {f"the {n} encoder": x for n, x in states.items()})
    states |= states_of_columns(first, data, numbers, lines, LEAST, site, limit, progress, at)
    arms = states | {f"without the {n}": side_by_side(states, n) for n in states if len(states) > 2}
    arms[JOINT] = arms[SMALL] = side_by_side(states)
    owner = owners_of(data, group_column, limit)[at]
    parts = apart(label[known], TEST, seed, ordered=False, owner=owner[known])
    kept, held = (known[part] for part in parts)
    narrow = max(2, arms[JOINT].shape[1] // NARROW)
    right, score = dict[str, Any](), dict[str, float]()
    for arm, x in arms.items():
        narrowed = PCA(min(narrow, len(kept) - 1))
        if summary == "autoencoder":
            narrowed = AutoencoderCode(narrow, seed)
        head = linear_head(0.1, *([narrowed] if arm == SMALL else [])).fit(x[kept], label[kept])
        right[arm] = head.predict(x[held]) == label[held]
        score[arm] = float(right[arm].mean())
    units = {arm: x.shape[1] for arm, x in arms.items()} | {SMALL: narrow}
    for arm, layers in lines_heads(states, len(lines), hidden, seed).items():
        right[arm] = layers.fit(arms[JOINT][kept], label[kept]).predict(arms[JOINT][held])
        right[arm] = right[arm] == label[held]
        score[arm], units[arm] = float(right[arm].mean()), sum(layers.fusion.widths)
    best = max(states, key=lambda name: score[name])
    gain, shared = gain_of_best({JOINT: right[JOINT]}, {name: right[name] for name in states}, seed)
    verdict = "fuse them" if is_sure(gain, shared) else f"the {best} alone will do"
    table = [{"source": arm, "units": units[arm], "accuracy": v} for arm, v in score.items()]
    points = [{"source": arm, "accuracy": v} for arm, v in score.items()]
    title = "Accuracy of each source"
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, right, label[held]),
        sentence=f"Together the sources name {score[JOINT]:.1%} of {len(held)} rows right, the "
        f"{best} alone {score[best]:.1%}; a tenth of the width keeps {score[SMALL]:.1%}.",
        **gained(gain, shared),
        rows=tuple(table),
        drawn=marks(title, points, WHOLE_ACCURACY, names("source"), size=90),
        facts={"most frequent class": f"{most_frequent(label[held]):.3f}"} | groups_told(owner),
        advice=(
            "The encoders stay as they are. Sources that say the same add nothing together: "
            "sonde.measure.cka says how alike their states are.",
        ),
    )
