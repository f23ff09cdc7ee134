"""Flow between users: whether rows of one user can change or show up in another user's answers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, bars
from sonde.data import open_inputs
from sonde.report import Answer
from sonde.weights import mean_loss, tuned
from sonde_studies.parts.figures import melted
from sonde_studies.parts.rows import rows_with
from sonde_studies.recipes.who_wrote_it import WORD

QUESTION = "Can one user's rows change another user's answers?"
LEAST = 6
HIDDEN = "-"
"""No word itself: an underscore could be a word of one user alone."""
SHARED, LABELLED, REDACTED, TUNED = (
    "shared index", "index with labels", "shared index, redacted", "shared fine-tuning",
)  # fmt: skip
WORDED = {"another's row": "another user's row is the answer", "changed": "answers that changed"}


def per_user_flow(
    model: Model,
    data: Any,
    *,
    user_column: str = "user",
    text_column: str = "text",
    epochs: int = 2,
    rate: float = 1e-4,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Replace one user's rows and count whose answers change, by four ways to serve all users.

    Half of each user's texts are stored, the other half are queries; an answer is the stored text
    of the nearest state. Ways: one index for all; the same with a label of its user on each row,
    which a query must match; one index of texts without the words that a single user uses; and, of
    a causal model, a copy that is tuned on all stored texts, whose answer is the next token.

    Example: sonde recipe per-user-flow MODEL TEXTS --user-column user -o flow.html

    Parameters
    ----------
    model : Model
        A text model.
    data : str, path or iterable
        Rows with a text and its user.
    user_column : str, default="user"
        Column of the user.
    text_column : str, default="text"
        Column of the text.
    epochs : int, default=2
        Passes over the stored texts in fine-tuning; 0 leaves it out.
    rate : float, default=0.0001
        Rate of Adam.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws what is stored, and the user whose rows are replaced.
    """
    rows = rows_with("per_user_flow", data, [user_column, text_column], 2 * LEAST, limit)
    user = np.array([str(row[user_column]) for row in rows])
    texts, draw = [str(row[text_column]) for row in rows], np.random.default_rng(seed)
    names = np.unique(user)
    if len(names) < 2 or min(Counter(user.tolist()).values()) < LEAST:
        raise InputError(
            f"per_user_flow: expected two or more users with {LEAST} or more texts each, got "
            f"{dict(Counter(user.tolist()))}. Leave users with few texts out."
        )
    order = draw.permutation(len(texts))
    kept = np.concatenate([(o := order[user[order] == n])[: len(o) // 2] for n in names])
    asked = np.setdiff1d(order, kept)
    gone = str(draw.choice(names))
    other = [_scrambled(t, draw) if u == gone else t for t, u in zip(texts, user, strict=True)]
    asked, private = asked[user[asked] != gone], _private(texts, user)
    hidden = [[_redacted(t, private) for t in side] for side in (texts, other)]
    table = list[dict[str, Any]]()
    for way, sides in ((SHARED, (texts, other)), (LABELLED, (texts, other)), (REDACTED, hidden)):
        labels = (user[asked], user[kept]) if way == LABELLED else None
        query = _states(model, [sides[0][i] for i in asked], progress)
        first, second = (
            _nearest(query, _states(model, [side[i] for i in kept], progress), labels)
            for side in sides
        )
        owner = user[kept][first]
        table.append({
            "way": way, "another's row": float((owner != user[asked]).mean()),
            "changed": float(((first != second) | (owner == gone)).mean()),
            "private words": _leaked([sides[0][kept[i]] for i in first], user[asked], private),
        })  # fmt: skip
    if epochs and model.task == "causal":
        query, stored = [texts[i] for i in asked], [[v[i] for i in kept] for v in (texts, other)]
        one, two = (_told(model, v, query, epochs, rate, seed, progress) for v in stored)
        changed = float((one != two).any(1).double().mean())
        moved = float((one - two).abs().amax(1).mean())
        table.append({"way": TUNED, "changed": changed, "nats": moved})
    leaks = any(r["changed"] > 0 for r in table)
    return Answer(
        question=QUESTION,
        verdict="only behind labels" if leaks else "they cannot",
        level="error" if table[1]["changed"] > 0 else "warning" if leaks else "clear",
        sentence=_said(table, gone, len(asked)),
        value=table[0]["changed"],
        n=len(asked),
        range=(0.0, 1.0),
        direction="lower",
        rows=tuple(table),
        drawn=bars(
            "How far one user's rows reach",
            melted(table, "way", "share", "what", WORDED),
            ChartAxis("share", share=True, zero=True),
            ChartAxis("way", title=""),
            by="what",
        ),
        facts={"users": str(len(names)), "rows replaced": gone},
        advice=(
            "Private words are words of one user alone, in answers to others. Labels are only as "
            "good as what sets them: this checks the index, not the login.",
        ),
    )  # fmt: skip


def _said(table: list[dict[str, Any]], gone: str, n: int) -> str:
    share, tight, last = table[0], table[1], table[-1]
    leak = share["another's row"]
    said = (
        f"With the rows of {gone} replaced, {share['changed']:.1%} of {n} answers of other users "
        f"change if all share one index, and {tight['changed']:.1%} if rows carry labels. "
        f"Of the answers from the shared index {leak:.1%} are another user's row."
    )
    if "nats" not in last:
        return said
    return (
        f"{said} After fine-tuning on all, {last['changed']:.1%} of next-token distributions "
        f"change, the most moved token by {last['nats']:.2g} nats on average."
    )


def _scrambled(text: str, draw: np.random.Generator) -> str:
    return "".join(text[int(i)] for i in draw.permutation(len(text)))


def _states(model: Model, texts: Sequence[str], progress: bool) -> Tensor:
    items = [{"text": t, "id": str(i)} for i, t in enumerate(texts)]
    stream = read(model, items, reducer="mean", long="truncate", check=False, logits=False)
    return [*gather(stream, progress).rows.values()][-1].double()


def _nearest(query: Tensor, stored: Tensor, labels: Any) -> Any:
    """Return the nearest stored row of each query, among those of its label if there are labels."""
    far = torch.cdist(query, stored)
    if labels is not None:
        far[torch.from_numpy(labels[0][:, None] != labels[1][None])] = torch.inf
    return far.argmin(1).numpy()


def _private(texts: list[str], user: Any) -> dict[str, str]:
    """Return the words that only one user uses, with their user."""
    owners: dict[str, set[str]] = {}
    for text, name in zip(texts, user, strict=True):
        for word in set(WORD.findall(text)):
            owners.setdefault(word, set()).add(str(name))
    return {word: next(iter(own)) for word, own in owners.items() if len(own) == 1}


def _redacted(text: str, private: dict[str, str]) -> str:
    return WORD.sub(lambda m: HIDDEN if m[0] in private else m[0], text)


def _leaked(said: list[str], asking: Any, private: dict[str, str]) -> float:
    """Return the share of answers that hold a word of another user alone."""
    hits = [
        any(private.get(word, name) != name for word in WORD.findall(text))
        for text, name in zip(said, asking, strict=True)
    ]
    return float(np.mean(hits))


def _told(
    model: Model, stored: list[str], asked: list[str], epochs: int, rate: float, seed: int,
    progress: bool,
) -> Tensor:  # fmt: skip
    """Return the log-probabilities after each query, of a copy tuned on the stored texts."""
    items = [{"text": t, "id": str(i)} for i, t in enumerate(stored)]
    inputs = open_inputs(model, items, long="truncate", batch_size=8)
    module = tuned(model, inputs, mean_loss, rate=rate, epochs=epochs, seed=seed,
                   label="fine-tune", progress=progress)  # fmt: skip
    copy = Model(module, model.processor, model.config, model.name, model.task)
    items = [{"text": t, "id": str(i)} for i, t in enumerate(asked)]
    found = gather(read(copy, items, long="truncate", check=False, logits=True), progress)
    if found.logits is None:
        raise InputError("per_user_flow: expected a causal model that gives logits. Set epochs=0.")
    return found.logits.double().log_softmax(1)
