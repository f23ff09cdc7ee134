"""Detection of generated text by a language model's metrics and states."""

from typing import Any

import numpy as np

from sonde import InputError, Model, gather, read
from sonde.core import marks
from sonde.data import rows_of
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.figures import AUROC, auroc_rows, names, told
from sonde_studies.parts.heads import character_head, chosen_apart, folds_of, linear_head
from sonde_studies.parts.noted import scored_apart
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import owners_of
from sonde_studies.parts.tokens import NAMES, text_features

QUESTION = "Was this text generated?"
FOLDS, LEAST = 5, 20
PLAIN = {"log_p": "mean surprise, low", "entropy": "mean entropy, low"}
PLAIN["log_rank"] = "mean rank, low"


@copies_once("texts", one_of_group=("human", "generated"))
def was_it_generated(
    model: Model,
    human: Any,
    generated: Any,
    *,
    texts: Any = None,
    text_column: str = "text",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Separate generated from human texts, and judge new texts by the best method.

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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
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
    everything = [text for part in said for text in part]
    items = [{"text": text} for text in everything]
    n, known = len(said[0]), len(said[0]) + len(said[1])
    numbers, lengths = text_features(model, items)
    states = [*gather(read(model, items, reducer="mean", long="truncate"), progress).rows.values()]
    heads: dict[str, tuple[Any, Any]] = {
        "head on numbers": (linear_head(), numbers.numpy()),
        "head on states": (linear_head(), states[len(states) // 2].double().numpy()),
        "head on characters": (character_head(), np.array(everything)),
    }
    scores: dict[str, Any] = {
        title: (1 if word == "log_p" else -1) * numbers[:known, NAMES.index(word)]
        for word, title in PLAIN.items()
    }
    scores["length alone"] = lengths[:known]
    is_made = np.arange(known) >= n
    owner = owners_of([*rows_of(human, limit), *rows_of(generated, limit)], group_column)
    folds = folds_of(is_made, owner, FOLDS, seed)
    for name, (head, x) in heads.items():
        scores[name] = scored_apart(name, head, x[:known], is_made, folds)
    found = {name: auroc(x, is_made, owner) for name, x in scores.items()}
    best = max(heads, key=lambda name: found[name].value)
    apart = chosen_apart(heads, is_made, FOLDS, seed, owner)
    own = auroc(apart, is_made, owner)
    # Training texts of two folds overlap, so that the interval over texts is too narrow for a test.
    tells = bool(auroc(apart, is_made, owner, level=0.99).low > 0.5)
    new = _judged(heads[best], is_made, known) if texts is not None else []
    likely = sum(p > 0.5 for p in new)
    ending = f" Of {len(new)} new texts {likely} are more likely generated." if new else ""
    table = auroc_rows(found)
    title = "How well each number tells generated text from text of people"
    return Answer(
        question=QUESTION,
        verdict="can be told" if tells else "cannot be told",
        level="clear" if tells else "warning",
        sentence="On texts that did not choose it, the best head distinguishes generated texts "
        f"from texts of people with AUROC {own.value:.3f} ({own.low:.3f} to {own.high:.3f}). On "
        f"all texts that is the {best}.{ending}",
        **told(own),
        rows=(*table, *({"what": f"new text {i}", "generated": p} for i, p in enumerate(new))),
        drawn=marks(title, table, AUROC, names("what"), low="low", high="high"),
        facts={"texts of people": str(n), "generated": str(known - n)},
        advice=(
            "The AUROC holds for texts like these: another generator, or another topic, needs its "
            "own texts. In the table the best of three heads looks better than it is.",
        ),
    )


def _judged(head: tuple[Any, Any], is_made: Any, known: int) -> list[float]:
    """Return each new text's probability of being generated, with a prior of 50 %."""
    fitted = head[0].fit(head[1][:known], is_made)
    odds = fitted.decision_function(head[1][known:]) - np.log(is_made.mean() / (1 - is_made.mean()))
    return (1 / (1 + np.exp(-odds))).tolist()
