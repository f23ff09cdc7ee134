"""Authorship: test whether a model's states identify writers, also without their words."""

from collections import Counter
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict  # pyright: ignore

from sonde import Model, gather, read
from sonde.core import bars
from sonde.report import Answer
from sonde_studies.parts.figures import ZERO_ACCURACY, error_of, most_frequent, names
from sonde_studies.parts.heads import character_head, linear_head
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import owners_of
from sonde_studies.parts.rows import check_classes, rows_with
from sonde_studies.parts.words import masked

QUESTION = "Who wrote it, and is it more than their words that tells?"
FOLDS, LEAST = 5, 40


@copies_once()
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
        Column of the document that a text is a piece of, if its name is not "group". Near copies
        are of one document.
    text_column : str, default="text"
        Column of the text.
    limit : int, optional
        Read only the first texts.
    seed : int, default=0
        Draws the folds.
    """
    columns = [text_column, author_column, *([group_column] if group_column else [])]
    rows = rows_with("who_wrote_it", texts, columns, LEAST, limit)
    text, author = ([str(row[c]) for row in rows] for c in columns[:2])
    group = owners_of(texts, group_column, limit)[: len(rows)]
    author, n = np.array(author), len(rows)
    check_classes("who_wrote_it", author, LEAST, each=FOLDS, groups=group)
    arms: dict[str, tuple[Any, Any]] = {}
    for name, said in (("as written", text), ("masked", masked(text, author))):
        stream = read(model, [{"text": t} for t in said], reducer="mean", long="truncate")
        states = [*gather(stream, progress).rows.values()]
        arms[f"states, {name}"] = linear_head(), states[len(states) // 2].double().numpy()
        arms[f"characters, {name}"] = character_head(), said
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    how: dict[str, Any] = {"groups": group, "cv": folds}
    named = {a: np.asarray(cross_val_predict(h, x, author, **how)) for a, (h, x) in arms.items()}
    right = {arm: found == author for arm, found in named.items()}
    error = {arm: error_of(found, group) for arm, found in right.items()}
    score, chance = {arm: float(r.mean()) for arm, r in right.items()}, most_frequent(author)
    above = [s > chance + 2 * error[arm] for arm, s in score.items()]
    verdict = "by more than words" if above[2] else "by their words" if above[0] else "not"
    points = [{"arm": a, "accuracy": s, "named by": a.partition(",")[0]} for a, s in score.items()]
    points.append({"arm": "most frequent writer", "accuracy": chance, "named by": "chance"})
    writers = sorted(set(author))
    pairs = zip(author, named["states, as written"], strict=True)
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1]) or {(writers[0], writers[0]): 0}
    most = max(sorted(wrong), key=lambda pair: wrong[pair])
    confused = f"{most[0]} taken for {most[1]}, {wrong[most]} times"
    table = [
        {"arm": arm, "accuracy": score[arm], "standard error": error[arm]}
        | {f"{who}: found": float(r[author == who].mean()) for who in writers}
        for arm, r in right.items()
    ]
    title, percent = "Texts whose writer is named", {arm: f"{s:.0%}" for arm, s in score.items()}
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if above[0] or above[2] else "warning",
        sentence=f"The states name the right one of {len(writers)} writers for "
        f"{percent['states, as written']} of {n} texts, and for {percent['states, masked']} where "
        f"words that not all writers use are masked; always naming the most frequent one gives "
        f"{chance:.0%}. Counts of characters give {percent['characters, as written']} and "
        f"{percent['characters, masked']}.",
        value=score["states, masked"],
        se=error["states, masked"],
        null=chance,
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=bars(title, points, ZERO_ACCURACY, names("arm"), by="named by"),
        facts={"groups": str(len(set(group))), "most often confused": confused},
        advice=(
            "A topic is not a writer: if each writer has topics of their own, words tell both.",
        ),
    )
