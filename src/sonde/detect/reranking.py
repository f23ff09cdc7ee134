"""Choose between several answers to a prompt by the scores of their traces.

References
----------
liang2025clue
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.errors import InputError


def rerank(scores: Any, prompt: Sequence[Hashable] | None = None) -> Int[Tensor, "row"]:
    """Return the answers by ascending score, the least outlying first.

    Prompts keep the order in which they first come; answers of equal score keep theirs.

    Parameters
    ----------
    scores : array (row,)
        Higher = more unusual, for instance of ``CLUE``.
    prompt : sequence, optional
        The prompt of each answer; None takes all for one.

    Examples
    --------
    >>> rerank([0.3, -1.0, 2.0, 0.0], ["a", "a", "b", "b"]).tolist()
    [1, 0, 3, 2]
    """
    values = _scores("rerank", scores)
    rows = _by_prompt("rerank", prompt, len(values)).values()
    ordered = [i for own in rows for i in sorted(own, key=lambda i: values[i])]
    return torch.tensor(ordered, dtype=torch.int64)


def top_majority(
    scores: Any,
    answers: Sequence[Hashable],
    prompt: Sequence[Hashable] | None = None,
    *,
    k: int,
) -> dict[Hashable, Hashable]:
    """Return each prompt's most frequent answer among its ``k`` least outlying traces.

    If answers have equally many votes, the answer of lower mean score wins, then the answer that
    comes first in order of scores. ``None`` is no answer and has no vote; a prompt without a vote
    gets the answer None. ``k = 1`` gives the best trace's answer, a large ``k`` the plain majority.

    Parameters
    ----------
    scores : array (row,)
        Higher = more unusual.
    answers : sequence
        What each trace answers, so that equal answers are equal.
    prompt : sequence, optional
        The prompt of each trace; None takes all for one, whose key is None.
    k : int
        Traces of a prompt that vote; all traces if the prompt has fewer.

    Examples
    --------
    >>> top_majority([0.1, 0.2, 0.3, -1.0, 5.0], ["4", "5", "5", "4", "5"], k=4)
    {None: '4'}
    """
    values = _scores("top_majority", scores)
    if len(answers) != len(values) or k < 1:
        raise InputError(
            f"top_majority: expected an answer for each of {len(values)} scores and k of at least "
            f"1, got {len(answers)} answers and k={k}."
        )
    top: dict[Hashable, Hashable] = {}
    for name, rows in _by_prompt("top_majority", prompt, len(values)).items():
        best = sorted(rows, key=lambda i: values[i])[:k]
        votes: dict[Hashable, list[float]] = {}
        for i in best:
            if answers[i] is not None:
                votes.setdefault(answers[i], []).append(values[i])
        ranked = sorted(votes.items(), key=lambda item: (-len(item[1]), _mean(item[1])))
        top[name] = ranked[0][0] if ranked else None
    return top


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.inf


def _scores(owner: str, scores: Any) -> list[float]:
    values = torch.as_tensor(scores, dtype=torch.float64).flatten()
    if len(values) == 0 or bool(values.isnan().any()):
        raise InputError(
            f"{owner}: expected scores without NaN, got {len(values)} scores, "
            f"{int(values.isnan().sum())} of them NaN."
        )
    numbers: list[float] = values.cpu().numpy().tolist()
    return numbers


def _by_prompt(owner: str, prompt: Sequence[Hashable] | None, n: int) -> dict[Hashable, list[int]]:
    if prompt is None:
        return {None: list(range(n))}
    if len(prompt) != n:
        raise InputError(f"{owner}: expected a prompt for each of {n} scores, got {len(prompt)}.")
    rows: dict[Hashable, list[int]] = {}
    for i, name in enumerate(prompt):
        rows.setdefault(name, []).append(i)
    return rows
