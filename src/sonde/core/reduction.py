"""Scores of examples, by a named reduction of the scores of their rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.state import State

AUTO = "auto"
ROWS = "rows"
OWN = "own"
REDUCTIONS = ("max", "mean", "topk_mean(k)")


@dataclass(frozen=True)
class Reduced(State):
    """One score for each example that has rows, in ascending order of ``example``.

    ``row`` is the index of the example's most unusual row, the first of equal ones.
    """

    example: Int[Tensor, "example"]
    score: Float[Tensor, "example"]
    row: Int[Tensor, "example"]


def reduce_scores(
    scores: Float[Tensor, "row"], example: Int[Tensor, "_row"], how: str = "max"
) -> Reduced:
    """Return a score for each example, independent of the order of its rows.

    Parameters
    ----------
    scores : Float[Tensor, "row"]
        Higher = more unusual; ``+inf`` for a row that is not finite makes its example infinite.
    example : Int[Tensor, "row"]
        Which example each row belongs to.
    how : str, default="max"
        ``max``, ``mean``, or ``topk_mean(k)``: the mean of the ``k`` largest scores, or of all
        scores if an example has fewer rows.

    Examples
    --------
    >>> found = reduce_scores(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([0, 0, 1]))
    >>> found.score.tolist(), found.row.tolist()
    ([5.0, 3.0], [1, 2])
    """
    largest = count_of(how)
    if len(scores) != len(example):
        raise ShapeError(
            f"reduce_scores: expected an example for each of {len(scores)} scores, got "
            f"{len(example)}."
        )
    scores = scores.detach().to("cpu", torch.float64)
    if bool(scores.isnan().any()):
        raise InputError("reduce_scores: expected scores that are numbers, got NaN.")
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(example[order], stable=True)]
    examples, owner = cast(
        "tuple[Tensor, Tensor]",
        torch.unique(example, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    owner, counts = owner[order], torch.bincount(owner, minlength=len(examples))
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - first[owner]
    keep = rank < (len(order) if largest is None else largest)
    kept = torch.zeros(len(examples), dtype=torch.float64)
    kept.index_add_(0, owner[keep], scores[order[keep]])
    used = counts if largest is None else counts.clamp(max=largest)
    return Reduced(examples, kept / used, order[first])


def reduction_at(reducers: Sequence[str], asked: str = AUTO, own: bool = False) -> str | None:
    """Return the reduction from row scores to example scores, or None if rows are not reduced.

    ``own`` says that the method has its own score of an example, which ``auto`` then chooses.

    Raises
    ------
    InputError
        If ``asked`` is neither ``auto``, ``rows`` nor a reduction.
    """
    if own and asked in (AUTO, OWN):
        return OWN
    if asked not in (AUTO, ROWS):
        count_of(asked)
        return asked
    return "max" if asked == AUTO and any(r.startswith("patches") for r in reducers) else None


def count_of(how: str) -> int | None:
    """Return the number of largest scores that a reduction averages; None for all.

    Raises
    ------
    InputError
        If there is no such reduction.
    """
    if how in ("max", "mean"):
        return 1 if how == "max" else None
    match = re.fullmatch(r"topk_mean\(([1-9][0-9]*)\)", how)
    if match is None:
        raise InputError(
            f"reduction: expected one of {', '.join(REDUCTIONS)} with a whole number k of at least "
            f"1, or auto or rows, got {how!r}."
        )
    return int(match[1])
