"""Numbers of tokens for the segments of a text or a video, by relevance to a question."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import inf
from numbers import Integral, Real
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, normalize

from sonde.core.errors import InputError
from sonde.core.finite import finite_rows
from sonde.core.tensors import as_tensor


def token_budget(
    relevance: Any,
    lengths: Any,
    budget: int,
    temperature: float | None = None,
    floor: int = 0,
) -> Int[Tensor, "segment"]:
    """Return the tokens of each segment: in proportion to its relevance, summing to the budget.

    A segment never gets more than its length; what it cannot take goes to the others in
    proportion. Fractions are rounded down, and the tokens that are left go to the largest
    fractions, of equal ones to the first. Where no segment that has room left is relevant, they
    share in proportion to their room: with all relevances 0, to their lengths (less the floor).

    Parameters
    ----------
    relevance : array (segment,)
        Relevance of each segment, at least 0: the probability that a model answers yes
        (``yes_relevance``), or a cosine (``segment_relevance``).
    lengths : array (segment,)
        Tokens of each segment: whole numbers of 0 or more.
    budget : int
        Number of tokens of all segments together.
    temperature : float, optional
        Share by ``softmax(relevance / temperature)``, finite and above 0; by default linear in the
        relevance.
    floor : int, default=0
        Tokens that every segment gets before the rest is shared, or its length if it has fewer.

    Raises
    ------
    InputError
        If a relevance is negative or not finite, a length, the budget or the floor is no whole
        number of 0 or more, there is not one relevance for each length, the temperature is not
        finite and above 0, the budget is less than the floor needs, or the segments have fewer
        tokens than the budget.

    Examples
    --------
    >>> token_budget([3.0, 1.0, 0.0], [5, 9, 9], 8).tolist()
    [5, 3, 0]

    References
    ----------
    luo2025quota
    """
    name = "token_budget"
    room = torch.tensor(_counts(name, lengths, "lengths"), dtype=torch.float64)
    share = _relevances(relevance, len(room))
    for what, value in (("budget", budget), ("floor", floor)):
        _check_count(name, what, value)
    _check_temperature(temperature)
    least = room.clamp(max=floor)
    if not int(least.sum()) <= budget <= int(room.sum()):
        raise InputError(
            f"{name}: expected a budget of at least {int(least.sum())}, which floor={floor} needs, "
            f"and at most the {int(room.sum())} tokens of all segments, got {budget}."
        )
    room, rest = room - least, int(budget) - int(least.sum())
    wanted = _filled(share, room, rest, temperature)
    counts = wanted.floor().long()
    fraction = torch.where(counts < room, wanted - counts, -1.0)
    left = rest - int(counts.sum())
    counts[fraction.argsort(descending=True, stable=True)[:left]] += 1
    return counts + least.long()


def segment_relevance(
    states: Any,
    lengths: Any,
    question: Any,
    combine: Literal["max", "mean"] = "max",
) -> Float[Tensor, "segment"]:
    """Return the relevance of each segment to the parts of a question.

    The cosine between the mean of a segment's states and each part, the largest or the mean over
    parts; negative values become 0.

    Parameters
    ----------
    states : array (token, dim)
        States of all segments, one after the other.
    lengths : array (segment,)
        Tokens of each segment, 1 or more.
    question : array (part, dim)
        A vector for each thing that is asked for, in the same space.
    combine : {"max", "mean"}, default="max"
        Take the largest cosine over the parts, or their mean.

    Raises
    ------
    InputError
        If the lengths are no whole numbers of 1 or more that sum to the tokens, states and question
        are not of the same width, a state or a part is not finite, or ``combine`` is another word.

    Examples
    --------
    >>> states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> segment_relevance(states, torch.tensor([2, 1]), torch.tensor([[3.0, 0.0]])).tolist()
    [1.0, 0.0]

    References
    ----------
    luo2025quota
    """
    name = "segment_relevance"
    if combine not in ("max", "mean"):
        raise InputError(f"{name}: expected combine as 'max' or 'mean', got {combine!r}.")
    x, parts = as_tensor(name, states, "states"), as_tensor(name, question, "a question")
    if x.ndim != 2 or parts.ndim != 2 or x.shape[1] != parts.shape[1] or len(parts) == 0:
        raise InputError(
            f"{name}: expected states (token, dim) and a question (part, dim) of the same dim, got "
            f"{tuple(x.shape)} and {tuple(parts.shape)}. Pass question[None] for a single vector."
        )
    sizes = _counts(name, lengths, "lengths", least=1, total=len(x))
    wide, asked = x.detach().double(), parts.detach().double().to(x.device)
    for what, rows in (("states", wide), ("parts of the question", asked)):
        n_bad = int((~finite_rows(rows)).sum())
        if n_bad:
            raise InputError(
                f"{name}: expected finite {what}, got NaN, infinity or numbers too large to square "
                f"in {n_bad} of {len(rows)}. Check what they come from."
            )
    means = torch.stack([part.mean(0) for part in wide.split(sizes)])
    relevance = normalize(means, dim=1) @ normalize(asked, dim=1).T
    relevance = relevance.amax(1) if combine == "max" else relevance.mean(1)
    return relevance.clamp(min=0).to(x.dtype if x.is_floating_point() else torch.float32)


def question_parts(question: str, others: Sequence[str], common: float = 0.5) -> list[str]:
    """Return the things that a question asks for: its runs of words that few questions have.

    Words that more than the share ``common`` of the other questions contain say how is asked, and
    part the rest. ``segment_relevance`` takes the states of the parts. ``asked_parts`` asks a
    language model to part the question, as in the paper.

    Parameters
    ----------
    question : str
        Question in plain text.
    others : sequence of str
        Questions of the same kind.
    common : float, default=0.5
        Fraction of the other questions, in [0, 1], beyond which a word says how is asked.

    Returns
    -------
    list of str
        In lower case, in order; the whole question if all of its words are common.

    Raises
    ------
    InputError
        If the question is no text, or ``others`` is one text instead of several.

    Examples
    --------
    >>> others = ["where is the lamp and the old door?", "where is the cat and the red car?"]
    >>> question_parts("Where is the grey cup and the dog?", others)
    ['grey cup', 'dog']

    References
    ----------
    luo2025quota
    """
    _check_questions(question, others)
    counts = Counter(word for other in others for word in set(_words(other)))
    words = _words(question)
    runs = groupby(words, lambda word: counts[word] > common * len(others))
    return [" ".join(run) for is_common, run in runs if not is_common] or [" ".join(words)]


def shortened(
    states: Float[Tensor, "token dim"], lengths: Any, kept: Any
) -> Float[Tensor, "token2 dim"]:
    """Return the states of all segments, each mean-pooled to ``kept`` tokens.

    Parameters
    ----------
    states : Float[Tensor, "token dim"]
        States of all segments, one after the other.
    lengths, kept : array (segment,)
        Tokens of each segment, and how many of them are left, as ``token_budget`` gives them.

    Raises
    ------
    InputError
        If the lengths do not sum to the tokens, or a segment would get more tokens than it has.

    Examples
    --------
    >>> shortened(torch.tensor([[1.0], [3.0], [5.0]]), [2, 1], [1, 1]).tolist()
    [[2.0], [5.0]]
    """
    sizes = _counts("shortened", lengths, "lengths", total=len(states))
    fewer = _counts("shortened", kept, "kept")
    if len(fewer) != len(sizes) or any(n > size for n, size in zip(fewer, sizes, strict=True)):
        raise InputError(
            f"shortened: expected for each of {len(sizes)} segments at most its tokens, {sizes}, "
            f"got {fewer}. Lower kept."
        )
    parts = zip(states.split(sizes), fewer, strict=True)
    pooled = [adaptive_avg_pool1d(x.T[None], n)[0].T for x, n in parts if n > 0]
    return torch.cat([states[:0], *pooled])


def _relevances(values: Any, n: int) -> Float[Tensor, "segment"]:
    """Return relevances as float64, checked."""
    relevances = as_tensor("token_budget", values, "relevance").detach().double().cpu()
    if tuple(relevances.shape) != (n,):
        raise InputError(
            f"token_budget: expected a relevance for each of {n} lengths, got shape "
            f"{tuple(relevances.shape)}."
        )
    wrong = ~(relevances.isfinite() & (relevances >= 0))
    if bool(wrong.any()):
        raise InputError(
            "token_budget: expected a finite relevance of 0 or more for each segment, got "
            f"{float(relevances[wrong][0]):.3g} for segment {int(wrong.long().argmax())}."
        )
    return relevances


def _counts(
    name: str, values: Any, what: str, least: int = 0, total: int | None = None
) -> list[int]:
    """Return a number of tokens for each segment, checked."""
    counts = as_tensor(name, values, what).detach().cpu().double()
    if counts.ndim != 1 or len(counts) == 0:
        raise InputError(
            f"{name}: expected {what} in one dimension, one for each segment, got shape "
            f"{tuple(counts.shape)}."
        )
    wrong = ~(counts.isfinite() & (counts >= least) & (counts == counts.round()))
    if bool(wrong.any()):
        raise InputError(
            f"{name}: expected {what} as whole numbers of {least} or more, got "
            f"{float(counts[wrong][0]):g} for segment {int(wrong.long().argmax())}."
        )
    if total is not None and int(counts.sum()) != total:
        raise InputError(
            f"{name}: expected {what} that sum to {total} tokens, the rows of states, got "
            f"{counts.long().tolist()}."
        )
    return counts.long().tolist()


def _check_count(name: str, what: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 0:
        raise InputError(
            f"{name}: expected {what} as a whole number of tokens, 0 or more, got {value!r}."
        )


def _check_temperature(value: Any) -> None:
    if value is not None and not (isinstance(value, Real) and 0.0 < float(value) < inf):
        raise InputError(
            f"token_budget: expected a finite temperature above 0, got {value!r}. Leave it out to "
            "share in proportion to the relevance."
        )


def _check_questions(question: Any, others: Any) -> None:
    if not isinstance(question, str) or isinstance(others, str):
        raise InputError(
            "question_parts: expected a question as a text and other questions as a list of texts, "
            f"got {type(question).__name__} and {type(others).__name__}."
        )


def _filled(share: Tensor, longest: Tensor, budget: int, temperature: float | None) -> Tensor:
    """Return fractional numbers of tokens, in proportion but at most a segment's length."""
    filled, free = torch.zeros_like(share), torch.ones(len(share), dtype=torch.bool)
    while True:
        left = budget - float(filled[~free].sum())
        weight = _weights(torch.where(free, share, 0.0), free, temperature)
        if float(weight.sum()) == 0.0:  # the rest has no relevance: by room alike
            weight = torch.where(free, longest, 0.0)
        tried = weight / weight.sum().clamp(min=1e-300) * left
        over = free & (tried > longest)
        if not bool(over.any()):
            return torch.where(free, tried, filled)
        filled = torch.where(over, longest, filled)
        free = free & ~over


def _weights(share: Tensor, free: Tensor, temperature: float | None) -> Tensor:
    """Return weights of at most 1, so that neither a sum overflows nor all of them vanish."""
    top = share.max()
    if temperature is not None:
        return torch.where(free, ((share - top) / float(temperature)).exp(), 0.0)
    return share / top if float(top) > 0.0 else share


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
