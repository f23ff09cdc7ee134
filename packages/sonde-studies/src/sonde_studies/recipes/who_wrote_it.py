"""Authorship: whether the states of a model tell writers apart, also without their words."""

import re
from collections import defaultdict
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.metrics import confusion_matrix  # pyright: ignore[reportUnknownVariableType]
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict  # pyright: ignore
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, bars
from sonde.data import rows_of
from sonde.report import Answer

QUESTION = "Who wrote it, and is it more than their words that tells?"
WORD = re.compile(r"\w+")
FOLDS, LEAST, COMMON = 5, 40, 0.8
CHARACTERS = (1, 3)


def who_wrote_it(
    model: Model,
    texts: Any,
    *,
    author_column: str = "author",
    group_column: str | None = None,
    text_column: str = "text",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Tell writers apart by the states of a model, with their words and without.

    A linear head on the mean state of each text names the writer, in five folds that never split a
    group. The same with words masked that not nearly all writers use, such as names; and with
    counts of characters in place of states, which need no model.

    Example: sonde recipe who-wrote-it MODEL TEXTS --author-column author -o authors.html

    Parameters
    ----------
    model : Model
        A text model.
    texts : str, path or iterable
        Rows with a text and its writer.
    author_column : str, default="author"
        Column of the writer.
    group_column : str, optional
        Column of the document that a text is a piece of; without it each text is its own.
    text_column : str, default="text"
        Column of the text.
    limit : int, optional
        Read only the first texts.
    seed : int, default=0
        Draws the folds.
    """
    text, author, group = _columns(rows_of(texts, limit), text_column, author_column, group_column)
    bare = masked(text, author)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    arms: dict[str, tuple[Any, Any]] = {}
    for name, said in (("as written", text), ("masked", bare)):
        stream = read(model, [{"text": t} for t in said], reducer="mean", long="truncate")
        states = [*gather(stream, progress).rows.values()]
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        arms[f"states, {name}"] = head, states[len(states) // 2].double().numpy()
        counts = TfidfVectorizer(analyzer="char", ngram_range=CHARACTERS, max_features=3000)
        arms[f"characters, {name}"] = make_pipeline(counts, LogisticRegression(C=10)), said
    named = {
        name: cross_val_predict(head, x, author, groups=group, cv=folds)
        for name, (head, x) in arms.items()
    }
    right = {name: found == author for name, found in named.items()}
    chance = float(np.unique(author, return_counts=True)[1].max() / len(author))
    error = {name: _error(found, group) for name, found in right.items()}
    above = {name: float(found.mean()) - chance > 2 * error[name] for name, found in right.items()}
    own, style = "states, as written", "states, masked"
    verdict = "by more than words" if above[style] else "by their words" if above[own] else "not"
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if above[own] or above[style] else "warning",
        sentence=f"The states name the right one of {len(set(author))} writers for "
        f"{right[own].mean():.0%} of {len(author)} texts, and for {right[style].mean():.0%} where "
        f"words that not all writers use are masked; always naming the most frequent one gives "
        f"{chance:.0%}. Counts of characters give {right['characters, as written'].mean():.0%} and "
        f"{right['characters, masked'].mean():.0%}.",
        value=float(right[style].mean()),
        se=error[style],
        null=chance,
        n=len(author),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(_rows(named, right, error, author)),
        drawn=bars(
            "Texts whose writer is named",
            [
                {"arm": name, "accuracy": float(x.mean()), "named by": name.partition(",")[0]}
                for name, x in right.items()
            ]
            + [{"arm": "most frequent writer", "accuracy": chance, "named by": "chance"}],
            ChartAxis("accuracy", share=True, zero=True),
            ChartAxis("arm", title=""),
            by="named by",
        ),
        facts={
            "groups": str(len(set(group))),
            "most often confused": _confused(named[own], author),
        },
        advice=(
            "A topic is not a writer: if each writer has topics of their own, words tell both.",
        ),
    )


def masked(texts: list[str], author: Any) -> list[str]:
    """Return texts in which each word that fewer than four in five writers use is a line."""
    users: dict[str, set[str]] = defaultdict(set)
    for text, name in zip(texts, author, strict=True):
        for word in set(WORD.findall(text)):
            users[word].add(name)
    least = COMMON * len(set(author))
    return [WORD.sub(lambda m: m[0] if len(users[m[0]]) >= least else "_", t) for t in texts]


def _columns(
    rows: list[Any], text: str, author: str, group: str | None
) -> tuple[list[str], Any, Any]:
    missing = [name for name in (text, author, group) if name and any(name not in r for r in rows)]
    if missing or len(rows) < LEAST:
        raise InputError(
            f"who_wrote_it: expected {LEAST} or more texts with their columns, got {len(rows)}, "
            f"without {', '.join(missing) or 'none missing'}. Look at author_column."
        )
    names = np.array([str(row[author]) for row in rows])
    groups = np.array([str(row[group]) if group else str(i) for i, row in enumerate(rows)])
    held = {name: len(set(groups[names == name])) for name in set(names)}
    if len(held) < 2 or min(held.values()) < FOLDS:
        raise InputError(
            f"who_wrote_it: expected two or more writers with {FOLDS} or more groups each, got "
            f"{held}. Leave writers with few documents out."
        )
    return [str(row[text]) for row in rows], names, groups


def _error(right: Any, group: Any) -> float:
    """Return the standard error of a share; texts of one group do not count as independent."""
    rest = right - right.mean()
    return float(np.sqrt(sum(rest[group == g].sum() ** 2 for g in set(group))) / len(right))


def _rows(named: Any, right: Any, error: Any, author: Any) -> list[dict[str, Any]]:
    return [
        {"arm": name, "accuracy": float(right[name].mean()), "standard error": error[name]}
        | {f"{who}: found": float(right[name][author == who].mean()) for who in sorted(set(author))}
        for name in named
    ]


def _confused(found: Any, author: Any) -> str:
    names = sorted(set(author))
    counts = confusion_matrix(author, found, labels=names)
    np.fill_diagonal(counts, 0)
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    return f"{names[i]} taken for {names[j]}, {counts[i, j]} times"
