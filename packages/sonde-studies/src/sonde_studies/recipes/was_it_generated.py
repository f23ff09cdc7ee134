"""Generated text: whether a language model's numbers and states tell it from text of people."""

from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.model_selection import StratifiedKFold, cross_val_predict  # pyright: ignore
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.data import rows_of
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.tokens import NAMES, text_features

QUESTION = "Was this text generated?"
FOLDS, LEAST, CHARACTERS = 5, 20, (1, 3)
PLAIN = {
    "log_p": "mean surprise, low",
    "entropy": "mean entropy, low",
    "log_rank": "mean rank, low",
}


def was_it_generated(
    model: Model,
    human: Any,
    generated: Any,
    *,
    texts: Any = None,
    text_column: str = "text",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Tell generated texts from texts of people, and judge new ones by what tells best.

    Single numbers of a language model (how surprised it is), a head on fifteen such numbers, a head
    on its states, and counts of characters, which need no model; heads in five folds. Texts of both
    kinds should be about the same things and equally long.

    Example: sonde recipe was-it-generated MODEL HUMAN GENERATED --texts NEW -o generated.html

    Parameters
    ----------
    model : Model
        A causal language model; best the one that may have written the texts.
    human : str, path or iterable
        Texts that people wrote.
    generated : str, path or iterable
        Texts that a model wrote.
    texts : str, path or iterable, optional
        New texts to judge.
    text_column : str, default="text"
        Column of the text.
    limit : int, optional
        Read only the first texts of each part.
    seed : int, default=0
        Draws the folds.
    """
    parts = [human, generated] + ([] if texts is None else [texts])
    said = [[str(row[text_column]) for row in rows_of(part, limit)] for part in parts]
    if min(map(len, said[:2])) < LEAST:
        raise InputError(
            f"was_it_generated: expected {LEAST} or more texts of each kind, got {len(said[0])} of "
            f"people and {len(said[1])} generated."
        )
    heads, plain = _readers(model, [t for part in said for t in part], progress)
    n, known = len(said[0]), len(said[0]) + len(said[1])
    is_made = np.arange(known) >= n
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = {name: score[:known] for name, score in plain.items()}
    for name, (head, x) in heads.items():
        far: Any = cross_val_predict(head, x[:known], is_made, cv=folds, method="decision_function")
        scores[name] = far
    told = {name: auroc(torch.as_tensor(x), torch.as_tensor(is_made)) for name, x in scores.items()}
    best = max(heads, key=lambda name: told[name].value)
    tells = bool(told[best].low > 0.5)
    new = _judged(heads[best], is_made, known) if texts is not None else []
    likely = sum(p > 0.5 for p in new)
    ending = f" Of {len(new)} new texts {likely} are more likely generated." if new else ""
    table = [
        {"what": name, "AUROC": m.value, "low": m.low, "high": m.high} for name, m in told.items()
    ]
    return Answer(
        question=QUESTION,
        verdict="can be told" if tells else "cannot be told",
        level="clear" if tells else "warning",
        sentence=f"{best.capitalize()} tells a generated text from one of people with AUROC "
        f"{told[best].value:.3f} ({told[best].low:.3f} to {told[best].high:.3f}).{ending}",
        value=told[best].value,
        null=0.5,
        n=known,
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table + [{"what": f"new text {i}", "generated": p} for i, p in enumerate(new)]),
        drawn=marks(
            "How well each number tells generated text from text of people",
            table,
            ChartAxis("AUROC", low=0.0, high=1.0),
            ChartAxis("what", title=""),
            low="low",
            high="high",
        ),
        facts={"texts of people": str(n), "generated": str(known - n)},
        advice=(
            "The best of three heads was chosen on these texts, so its AUROC is optimistic. It "
            "holds for texts like these: another generator, or another topic, needs its own texts.",
        ),
    )


def _readers(
    model: Model, texts: list[str], progress: bool
) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Return heads with what they read of each text, and single numbers of each text."""
    items = [{"text": text} for text in texts]
    numbers, lengths = text_features(model, items)
    states = [*gather(read(model, items, reducer="mean", long="truncate"), progress).rows.values()]
    scaled = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    counts = TfidfVectorizer(analyzer="char", ngram_range=CHARACTERS, max_features=3000)
    plain = {
        title: (numbers[:, NAMES.index(name)] * (1 if name == "log_p" else -1)).numpy()
        for name, title in PLAIN.items()
    }
    return {
        "head on numbers": (scaled, numbers.numpy()),
        "head on states": (scaled, states[len(states) // 2].double().numpy()),
        "head on characters": (make_pipeline(counts, LogisticRegression(C=10)), np.array(texts)),
    }, plain | {"length alone": lengths.numpy()}


def _judged(head: tuple[Any, Any], is_made: Any, known: int) -> list[float]:
    """Return how likely each new text is generated, if one in two is."""
    fitted = head[0].fit(head[1][:known], is_made)
    odds = fitted.decision_function(head[1][known:]) - np.log(is_made.mean() / (1 - is_made.mean()))
    return (1 / (1 + np.exp(-odds))).tolist()
