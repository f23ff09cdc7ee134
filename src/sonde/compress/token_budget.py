"""Numbers of tokens for the segments of a text or a video, by relevance to a question."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, normalize

from sonde.core.errors import InputError


def token_budget(
    relevance: Float[Tensor, "segment"],
    lengths: Int[Tensor, "segment"],
    budget: int,
    temperature: float | None = None,
    floor: int = 0,
) -> Int[Tensor, "segment"]:
    """Return the tokens of each segment: in proportion to its relevance, summing to the budget.

    A segment never gets more than its length; what it cannot take goes to the others in
    proportion. Fractions are rounded down, and the tokens that are left go to the largest
    fractions, of equal ones to the first.

    Parameters
    ----------
    relevance : Float[Tensor, "segment"]
        Of 0 or more: the probability that a model answers yes (``yes_relevance``), or the largest
        cosine to a part of the question (``segment_relevance``).
    lengths : Int[Tensor, "segment"]
        Tokens of each segment.
    budget : int
        Of all segments together.
    temperature : float, optional
        Share by ``softmax(relevance / temperature)``; by default linear in the relevance.
    floor : int, default=0
        Tokens that every segment gets before the rest is shared, or its length if it has fewer.

    Raises
    ------
    InputError
        If a relevance is negative or not finite, or the segments have fewer tokens than the budget.

    Examples
    --------
    >>> token_budget(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([5, 9, 9]), 8).tolist()
    [5, 3, 0]

    References
    ----------
    luo2025quota
    """
    share = relevance.detach().double().cpu()
    longest = lengths.detach().cpu().double()
    if share.shape != longest.shape or bool((share < 0).any()) or not bool(share.isfinite().all()):
        raise InputError(
            "token_budget: expected a finite relevance of 0 or more for each segment, got "
            f"{tuple(share.shape)} for {tuple(longest.shape)} lengths, from {share.min():.3g}."
        )
    least = longest.clamp(max=floor)
    if floor < 0 or not int(least.sum()) <= budget <= int(longest.sum()):
        raise InputError(
            f"token_budget: expected a budget of at least {int(least.sum())}, which "
            f"floor={floor} needs, and at most the {int(longest.sum())} tokens of all segments, "
            f"got {budget}."
        )
    if temperature is not None:
        share = (share / temperature).softmax(0)
    room, rest = longest - least, budget - int(least.sum())
    wanted = _filled(share, room, rest)
    found = wanted.floor().long()
    fraction = torch.where(found < room, wanted - found, -1.0)
    left = rest - int(found.sum())
    found[fraction.argsort(descending=True, stable=True)[:left]] += 1
    return found + least.long()


def segment_relevance(
    states: Float[Tensor, "token dim"],
    lengths: Int[Tensor, "segment"],
    question: Float[Tensor, "part dim"],
    combine: Literal["max", "mean"] = "max",
) -> Float[Tensor, "segment"]:
    """Return the relevance of each segment to the parts of a question.

    The cosine between the mean of a segment's states and each part, the largest or the mean over
    parts; negative values become 0.

    Parameters
    ----------
    states : Float[Tensor, "token dim"]
        Of all segments, one after the other.
    lengths : Int[Tensor, "segment"]
        Tokens of each segment, 1 or more.
    question : Float[Tensor, "part dim"]
        A vector for each thing that is asked for, in the same space.
    combine : {"max", "mean"}, default="max"

    Raises
    ------
    InputError
        If the lengths do not sum to the tokens, or a segment has none.

    Examples
    --------
    >>> states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> segment_relevance(states, torch.tensor([2, 1]), torch.tensor([[3.0, 0.0]])).tolist()
    [1.0, 0.0]

    References
    ----------
    luo2025quota
    """
    sizes = [int(n) for n in lengths]
    if sum(sizes) != len(states) or min(sizes, default=0) < 1:
        raise InputError(
            f"segment_relevance: expected lengths of 1 or more that sum to {len(states)} tokens, "
            f"got {sizes}."
        )
    means = torch.stack([part.double().mean(0) for part in states.split(sizes)])
    found = normalize(means, dim=1) @ normalize(question.double(), dim=1).T
    found = found.amax(1) if combine == "max" else found.mean(1)
    return found.clamp(min=0).to(states.dtype)


def question_parts(question: str, others: Sequence[str], common: float = 0.5) -> list[str]:
    """Return the things that a question asks for: its runs of words that few questions have.

    Words that more than the share ``common`` of the other questions contain say how is asked, and
    part the rest. ``segment_relevance`` takes the states of the parts. ``asked_parts`` asks a
    language model to part the question, as in the paper.

    Parameters
    ----------
    question : str
    others : sequence of str
        Questions of the same kind.
    common : float, default=0.5

    Returns
    -------
    list of str
        In lower case, in order; the whole question if all of its words are common.

    Examples
    --------
    >>> others = ["where is the lamp and the old door?", "where is the cat and the red car?"]
    >>> question_parts("Where is the grey cup and the dog?", others)
    ['grey cup', 'dog']

    References
    ----------
    luo2025quota
    """
    counts = Counter(word for other in others for word in set(_words(other)))
    words = _words(question)
    runs = groupby(words, lambda word: counts[word] > common * len(others))
    return [" ".join(run) for is_common, run in runs if not is_common] or [" ".join(words)]


def shortened(
    states: Float[Tensor, "token dim"],
    lengths: Int[Tensor, "segment"],
    kept: Int[Tensor, "segment"],
) -> Float[Tensor, "token2 dim"]:
    """Return the states of all segments, each mean-pooled to ``kept`` tokens."""
    parts = states.split([int(n) for n in lengths])
    sizes = zip(parts, kept.tolist(), strict=True)
    pooled = [adaptive_avg_pool1d(x.T[None], n)[0].T for x, n in sizes if n > 0]
    return torch.cat(pooled)


def _filled(share: Tensor, longest: Tensor, budget: int) -> Tensor:
    """Return fractional numbers of tokens, in proportion but at most a segment's length."""
    found, free = torch.zeros_like(share), torch.ones(len(share), dtype=torch.bool)
    while True:
        left = budget - float(found[~free].sum())
        weight = torch.where(free, share, 0.0)
        if float(weight.sum()) == 0.0:  # the rest has no relevance: by room alike
            weight = torch.where(free, longest, 0.0)
        tried = weight / weight.sum().clamp(min=1e-300) * left
        over = free & (tried > longest)
        if not bool(over.any()):
            return torch.where(free, tried, found)
        found = torch.where(over, longest, found)
        free = free & ~over


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
