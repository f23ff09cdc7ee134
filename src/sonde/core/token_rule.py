"""Rules that reduce the tokens inside a model: the base class and its inputs.

A rule is a frozen dataclass with ``reduce``; ``sonde.shortening(model, rule)`` runs a model whose
blocks follow it. The rule never touches the model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.keywords import InitSignature, checked_new

Asked = Literal["first", "last"]


@dataclass(frozen=True, eq=False)
class InsideTokens:
    """Inputs of a token rule: the tokens after one block.

    Parameters
    ----------
    keys : Float[Tensor, "row head token width"]
        Keys of the block's attention, one for each token and head.
    received : Float[Tensor, "row token"] or None
        Attention of the query that the rule asks for, mean over heads.
    real : Bool[Tensor, "row token"]
        False at padding.
    size : Float[Tensor, "row token"]
        Tokens of the input that each token stands for.
    n_input : Int[Tensor, "row"]
        Real tokens of each row's input.
    """

    keys: Float[Tensor, "row head token width"]
    received: Float[Tensor, "row token"] | None
    real: Bool[Tensor, "row token"]
    size: Float[Tensor, "row token"]
    n_input: Int[Tensor, "row"]


@dataclass(frozen=True, eq=False)
class Reduction:
    """Assignment of each token to the token that it is merged into.

    Parameters
    ----------
    leader : Int[Tensor, "row token"]
        For a token that stays, its own place; for a merged token, the place of the token that it is
        merged into; for a dropped token, -1.
    weight : Float[Tensor, "row token"]
        Weight of each token in the mean of the tokens that are merged.
    """

    leader: Int[Tensor, "row token"]
    weight: Float[Tensor, "row token"]


class TokenRule(ABC):
    """Rule that removes or merges tokens after blocks. Subclasses are final dataclasses.

    Attributes
    ----------
    asks : {"first", "last"} or None
        The query whose attention ``reduce`` reads: of the first or the last real token.
    counts_sizes : bool
        Whether a token that stands for several tokens draws as much attention as they did.
    """

    call_form: ClassVar[str] = "sonde.shortening(model, {name}())"
    __new__ = checked_new
    __signature__ = InitSignature()

    asks: Asked | None = None
    counts_sizes: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @abstractmethod
    def acts(self, block: int, n_blocks: int) -> bool:
        """Return whether the rule reduces tokens after a block, counted from 0."""

    @abstractmethod
    def reduce(self, seen: InsideTokens) -> Reduction:
        """Return the assignment of each token; entries at padding are ignored."""
