"""Fusion of sources: whether several encoders together say more than the best of them."""

from typing import Any

import numpy as np
from sklearn.decomposition import PCA  # pyright: ignore[reportMissingTypeStubs]
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.model_selection import train_test_split  # pyright: ignore
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.report import Answer

QUESTION = "Do two encoders together say more than the better one?"
LEAST, TEST, NARROW = 60, 0.4, 10
JOINT, SMALL = "both, side by side", "both, at a tenth of the width"


def feature_fusion(
    first: Model,
    second: Model,
    data: Any,
    *,
    third: Model | None = None,
    label_column: str | None = None,
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Read the label from the states of each encoder, of all together, and of a narrow summary.

    Linear heads on standardised states; the summary is the first principal components, a tenth as
    many as there are units. Each source is also left out in turn. Four tenths of the rows judge.

    Example: sonde recipe feature-fusion FIRST SECOND DATA -o fusion.html

    Parameters
    ----------
    first : Model
    second : Model
    data : str, path or iterable
        Labelled rows that all encoders read.
    third : Model, optional
        A third encoder.
    label_column : str, optional
        Column of the class, where its name does not say so.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge.
    """
    models = {"first": first, "second": second} | ({} if third is None else {"third": third})
    states: dict[str, Any] = {}
    label = np.zeros(0, int)
    for name, model in models.items():
        options = {"label_column": label_column, "limit": limit, "logits": False}
        found = gather(read(model, data, sites=site, **options), progress)
        states[name] = found.rows[[*found.rows][-1]].double().numpy()
        label = found.label.numpy()
    known = label >= 0
    if known.sum() < LEAST or len(np.unique(label[known])) < 2:
        raise InputError(
            f"feature_fusion: expected {LEAST} or more labelled rows of two classes, got "
            f"{int(known.sum())} of {len(np.unique(label[known]))}. Look at label_column."
        )
    arms = dict(states)
    arms |= {f"without the {n}": _joined(states, n) for n in states if len(states) > 2}
    arms[JOINT] = _joined(states)
    kept, held = train_test_split(
        np.flatnonzero(known), test_size=TEST, stratify=label[known], random_state=seed
    )
    right = {arm: _right(x, label, kept, held) for arm, x in arms.items()}
    width = arms[JOINT].shape[1]
    right[SMALL] = _right(arms[JOINT], label, kept, held, max(2, width // NARROW))
    score = {arm: float(r.mean()) for arm, r in right.items()}
    best = max(states, key=lambda name: score[name])
    gain = right[JOINT] * 1.0 - right[best]
    spread = float(gain.std() / np.sqrt(len(gain)))
    helps = float(gain.mean()) > 2 * spread
    return Answer(
        question=QUESTION,
        verdict="fuse them" if helps else f"the {best} alone will do",
        level="clear",
        sentence=f"Together the encoders name {score[JOINT]:.1%} of {len(held)} rows right, the "
        f"{best} alone {score[best]:.1%}; a tenth of the width keeps {score[SMALL]:.1%}.",
        value=float(gain.mean()),
        se=spread,
        null=0.0,
        n=len(held),
        direction="higher",
        rows=tuple(
            {"source": arm, "units": _units(arm, arms, width), "accuracy": value}
            for arm, value in score.items()
        ),
        drawn=marks(
            "Accuracy of a linear head",
            [{"source": arm, "accuracy": value} for arm, value in score.items()],
            ChartAxis("accuracy", share=True, low=0.0, high=1.0),
            ChartAxis("source", title=""),
            size=90,
        ),
        facts={"most frequent class": f"{_most(label[held]):.3f}"},
        advice=(
            "The encoders stay as they are. Sources that say the same add nothing together: "
            "sonde.measure.cka says how alike their states are.",
        ),
    )


def _joined(states: dict[str, Any], but: str = "") -> Any:
    parts = [x for name, x in states.items() if name != but]
    return np.concatenate([(x - x.mean(0)) / (x.std(0) + 1e-9) for x in parts], 1)


def _right(x: Any, label: Any, kept: Any, held: Any, width: int = 0) -> Any:
    steps = [StandardScaler(), *([PCA(min(width, len(kept) - 1))] if width else [])]
    head = make_pipeline(*steps, LogisticRegression(C=0.1, max_iter=500))
    return head.fit(x[kept], label[kept]).predict(x[held]) == label[held]


def _units(arm: str, arms: dict[str, Any], width: int) -> int:
    return arms[arm].shape[1] if arm in arms else max(2, width // NARROW)


def _most(label: Any) -> float:
    return float(np.unique(label, return_counts=True)[1].max() / len(label))
