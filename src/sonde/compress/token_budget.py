"""How many tokens each segment of a text or a video gets, by its relevance to a question."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from sonde.core.errors import InputError


def token_budget(
    relevance: Float[Tensor, "segment"],
    lengths: Int[Tensor, "segment"],
    budget: int,
    temperature: float | None = None,
) -> Int[Tensor, "segment"]:
    """Return tokens for each segment that sum to the budget, in proportion to its relevance.

    A segment never gets more than its length; what it cannot take goes to the others in
    proportion. Fractions are rounded down, and the tokens that are left go to the largest
    fractions, of equal ones to the first.

    Parameters
    ----------
    relevance : Float[Tensor, "segment"]
        Of 0 or more, such as the largest cosine to a part of the question.
    lengths : Int[Tensor, "segment"]
        Tokens of each segment.
    budget : int
        Of all segments together.
    temperature : float, optional
        Share by ``softmax(relevance / temperature)``; by default linear in the relevance.

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
    if not 0 <= budget <= int(longest.sum()):
        raise InputError(
            f"token_budget: expected a budget of at most the {int(longest.sum())} tokens of all "
            f"segments, got {budget}."
        )
    if temperature is not None:
        share = (share / temperature).softmax(0)
    wanted = _filled(share, longest, budget)
    found = wanted.floor().long()
    fraction = torch.where(found < longest, wanted - found, -1.0)
    left = budget - int(found.sum())
    found[fraction.argsort(descending=True, stable=True)[:left]] += 1
    return found


def shortened(
    states: Float[Tensor, "token dim"],
    lengths: Int[Tensor, "segment"],
    kept: Int[Tensor, "segment"],
) -> Float[Tensor, "token2 dim"]:
    """Return the states of all segments, each pooled to ``kept`` tokens by neighbours' means."""
    parts = states.split([int(n) for n in lengths])
    sizes = zip(parts, kept.tolist(), strict=True)
    pooled = [adaptive_avg_pool1d(x.T[None], n)[0].T for x, n in sizes if n > 0]
    return torch.cat(pooled)


def _filled(share: Tensor, longest: Tensor, budget: int) -> Tensor:
    """Return fractional numbers of tokens: in proportion, but at most a segment's length."""
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
