"""Base class of compact formats for the tokens of a key-value cache.

A packing is a frozen dataclass with ``pack``; ``sonde.caching(model, packing)`` opens a cache that
holds older tokens in that form. All tokens stay, unlike with a ``CacheRule``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.keywords import InitSignature, checked_new
from sonde.core.ranges import check_ranges


class PackedTokens(ABC):
    """Keys and values of some tokens in packed form."""

    @abstractmethod
    def unpack(self, heads: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return keys and values of some heads, (row, head, token, width), in their old dtype."""

    @abstractmethod
    def over_rows(self, change: Callable[[Tensor], Tensor]) -> "PackedTokens":
        """Return the tokens with rows repeated, removed or reordered."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Number of bytes in memory."""


class CachePacking(ABC):
    """Format in which a key-value cache stores its older tokens.

    Subclasses are final frozen dataclasses. The newest tokens wait in full precision until
    ``chunk`` of them are older than ``recent``; then these are packed together.

    Attributes
    ----------
    chunk : int
        Tokens that are packed together.
    recent : int
        Newest tokens that are never packed.
    layers : int, default=1
        Adjacent layers whose tokens are packed together, one layer's heads behind another's.
    before_rotation : bool, default=False
        Whether keys are packed as they were before the attention rotated them.
    """

    call_form: ClassVar[str] = "sonde.caching(model, {name}())"
    __new__ = checked_new
    __signature__ = InitSignature()

    chunk: int
    recent: int
    layers: int = 1
    before_rotation: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @abstractmethod
    def pack(
        self,
        keys: Float[Tensor, "row head token width"],
        values: Float[Tensor, "row head token width2"],
        real: Bool[Tensor, "row token"],
    ) -> PackedTokens:
        """Return tokens in packed form; values at padding (``real`` is False) may change."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the packing itself, for the layers that it packs together."""
        return 0

    @property
    @abstractmethod
    def setting(self) -> str:
        """The packing's setting as a short text, such as ``4 bit``."""

    def __post_init__(self) -> None:
        check_ranges(self, chunk=">= 1", recent=">= 0")
