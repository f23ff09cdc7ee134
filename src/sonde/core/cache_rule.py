"""Rules for the tokens that a key-value cache keeps: the base class and its inputs.

A rule is a frozen dataclass with a budget and ``score``; ``sonde.caching(model, rule)`` opens a
cache that follows it. The rule never touches the model.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.keywords import InitSignature, checked_new
from sonde.core.query_moments import ComingRotation, QueryMoments

Budget = int | float
Queries = int | Literal["all"]


@dataclass(frozen=True, eq=False)
class CachedTokens:
    """Inputs of a cache rule: the tokens in one layer's cache.

    A row is one text of the batch, a head one key-value head, a slot one place in the cache. Slots
    of a row that holds fewer tokens than others are empty.

    Parameters
    ----------
    index : Int[Tensor, "row head slot"]
        Which real token of its text a slot holds, from 0; padding does not count; -1 = empty.
    total : Int[Tensor, "row"]
        Real tokens that each row has seen, evicted ones included.
    keep : Int[Tensor, "row"]
        How many tokens stay in each row and head.
    attention : Float[Tensor, "row head slot"] or None
        Attention that each slot received, summed over the queries that the rule asks for and
        averaged over the query heads that share the key; None if the rule asks for none.
    queries : QueryMoments or None
        Moments of the queries that each row had so far; None if the rule asks for none.
    rotation : ComingRotation or None
        None if the rule asks for none, or the attention does not rotate.
    scale : float
        Factor of the product of a query and a key.
    """

    index: Int[Tensor, "row head slot"]
    total: Int[Tensor, "row"]
    keep: Int[Tensor, "row"]
    attention: Float[Tensor, "row head slot"] | None = None
    queries: QueryMoments | None = None
    rotation: ComingRotation | None = None
    scale: float = 1.0

    @property
    def age(self) -> Int[Tensor, "row head slot"]:
        """Number of real tokens after each slot's token in the row."""
        return self.total[:, None, None] - 1 - self.index

    def with_newest(
        self, scores: Float[Tensor, "row head slot"], count: Int[Tensor, "row"]
    ) -> Float[Tensor, "row head slot"]:
        """Return scores set to infinity at the newest tokens, so that these are kept.

        Parameters
        ----------
        scores : Float[Tensor, "row head slot"]
        count : Int[Tensor, "row"]
            How many of the newest tokens stay; at most ``keep`` of them.
        """
        most = torch.minimum(count, self.keep)[:, None, None]
        return torch.where(self.age < most, torch.inf, scores)

    def received(self) -> Float[Tensor, "row head slot"]:
        """Return the attention that tokens received, for rules with ``reads_attention``."""
        if self.attention is None:
            raise InputError(
                "CachedTokens: expected attention, got none. Let the rule's reads_attention() "
                "return the number of queries whose attention it needs."
            )
        return self.attention


class CacheRule(ABC):
    """Rule for the tokens that a key-value cache keeps. Subclasses are final frozen dataclasses.

    Every subclass has a field ``budget``: tokens of each row and head that stay (an integer), or
    the share of the real tokens seen so far (a float in (0, 1], rounded up).
    """

    call_form: ClassVar[str] = "sonde.caching(model, {name}())"
    __new__ = checked_new
    __signature__ = InitSignature()

    budget: Budget
    by_head: ClassVar[bool] = False
    """Whether heads share the budget out among themselves (``share_out``)."""

    @abstractmethod
    def score(
        self,
        keys: Float[Tensor, "row head slot width"],
        values: Float[Tensor, "row head slot width2"],
        seen: CachedTokens,
    ) -> Float[Tensor, "row head slot"]:
        """Return the score of each token; on ties, the earlier token is kept.

        Scores of empty slots are ignored. A score of infinity keeps the token as far as the budget
        reaches.
        """

    @property
    def setting(self) -> str:
        """The rule's setting as a short text: its budget."""
        return f"{self.budget:g}"

    def reads_attention(self) -> Queries:
        """Return the number of last queries whose attention is read: 0 for none, or ``"all"``."""
        return 0

    def reads_queries(self) -> int | None:
        """Return the first real token whose query is read, or None if no query is read."""
        return None

    def reads_rotation(self) -> bool:
        """Return whether the rule needs the rotation of the queries."""
        return False

    def share_out(
        self, scores: Float[Tensor, "row head slot"], seen: CachedTokens
    ) -> Int[Tensor, "row head"]:
        """Return the number of kept tokens of each head, ``keep`` per head on average."""
        return seen.keep[:, None].expand(scores.shape[:2])

    def __post_init__(self) -> None:
        check_budget(type(self).__name__, self.budget)

    def kept(self, total: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """Return the number of kept tokens for rows that have seen ``total`` real tokens each."""
        if isinstance(self.budget, int):
            return total.clamp(max=self.budget)
        share = exact_share(self.budget)
        kept = -(-total * share.numerator // share.denominator)
        return torch.minimum(kept.clamp(min=1), total)


def kept_count(share: float, total: int) -> int:
    """Return a fraction of ``total``, rounded up; at least 1 unless ``total`` is 0.

    The product is exact: in floating point ``10 * (1 - 0.9)`` rounds to less than 1.

    Examples
    --------
    >>> kept_count(0.1, 10), kept_count(0.1, 11), kept_count(0.25, 1)
    (1, 2, 1)
    """
    return min(total, max(math.ceil(exact_share(share) * total), 1))


@cache
def exact_share(share: float) -> Fraction:
    """Return the exact fraction of a float, such as 1/10 for 0.1."""
    return Fraction(share).limit_denominator(1_000_000)


def check_budget(owner: str, budget: Any) -> None:
    """Raise unless a budget is a positive number of tokens or a fraction in (0, 1].

    Raises
    ------
    InputError
    """
    is_tokens = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1
    if not is_tokens and not (isinstance(budget, float) and 0.0 < budget <= 1.0):
        raise InputError(
            f"{owner}: expected budget to be a number of tokens, 1 or more, or a fraction in "
            f"(0, 1] such as 0.25, got {budget!r}."
        )
