"""Restrict the attention of a trained model to a pattern.

For the port ``probs``: ``sonde edit attention`` uses it to find which layers need to look far. To
train a model with a pattern, take ``sonde.layers.Attention``.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.site import Site
from sonde.edit._probs import by_head, positions
from sonde.layers.patterns import Where, pattern_of


@final
@dataclass(frozen=True)
class LimitAttention(Edit):
    """Remove each query's attention to keys outside a pattern, and rescale the rest of the row.

    ``A' = renormalised((1 - s) A + s A M)`` with the pattern's mask ``M`` and strength ``s``. Rows
    of padding stay as they are. A head so sharp that its probabilities inside the pattern vanish in
    their number type gives everything to the token itself.

    Range        rows stay distributions; keys outside the pattern get exactly 0 at strength 1.
    Cost         the layer's attention without its fused kernel, and the mask of all pairs.
    Assumes      the port ``probs`` with all heads, queries and keys of one text.

    Parameters
    ----------
    pattern : str
        ``window:8``, ``global:1:8``, ``block:16``, ``axial``, ...; see ``sonde.layers.PATTERNS``.
    grid : (int, int), optional
        Height and width in patches, for ``axial`` and ``stripes``.
    prefix : int, default=0
        Tokens before the grid (a class token). All queries see them, and they see all keys.
    n_heads : int, optional
        Heads of the attention; needed for ``generate`` with a cache, else inferred.
    strength : float, default=1.0
        Fraction of the attention outside the pattern that is removed, in [0, 1].
    seed : int, default=0
        Seed of the groups that ``random`` draws.

    Examples
    --------
    >>> probs = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]])
    >>> LimitAttention("window:1").apply(probs, Site("0:probs"), EditContext())[0, 2].tolist()
    [0.0, 0.5, 0.5]

    References
    ----------
    beltagy2020longformer
    """

    pattern: str
    grid: tuple[int, int] | None = None
    prefix: int = 0
    n_heads: int | None = None
    strength: float = 1.0
    seed: int = 0
    paper: ClassVar[str] = "beltagy2020longformer"

    def __post_init__(self) -> None:
        pattern = pattern_of(self.pattern)
        if pattern.sorts:
            raise InputError(
                f"LimitAttention: {self.pattern} sorts values, but the port probs has no "
                "values. Choose another pattern."
            )
        if pattern.spatial and self.grid is None:
            raise InputError(f"LimitAttention: expected grid=(height, width) for {self.pattern}.")
        check_ranges(self, strength="[0, 1]", prefix=">= 0")

    def apply(
        self, x: Float[Tensor, "example query heads_keys"], site: Site, context: EditContext
    ) -> Float[Tensor, "example query heads_keys"]:
        """Return the probabilities inside the pattern.

        Raises
        ------
        InputError
            If a query looks at nothing inside the pattern.
        """
        if self.strength == 0.0:
            return x
        probs = self._by_head(x, site)
        if self.prefix >= probs.shape[3]:
            raise InputError(
                f"LimitAttention: expected a prefix of fewer than the {probs.shape[3]} tokens at "
                f"{site}, got {self.prefix}: nothing would be limited."
            )
        allowed = self.allowed(probs, context)
        kept = probs * (1.0 - self.strength * ~allowed)
        total, left = probs.sum(3, keepdim=True), kept.sum(3, keepdim=True)
        real, least = context.mask, torch.finfo(x.dtype).tiny
        here = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
        lost = here[:, :, None, None] & (left < least) & (total > 0)
        if bool(lost.any()):
            own = torch.eye(probs.shape[3], dtype=torch.bool, device=x.device)[-x.shape[1] :, None]
            if bool((lost & ~(own & allowed).any(3, keepdim=True)).any()):
                row, query = (int(i) for i in lost.nonzero()[0][:2])
                raise InputError(
                    f"LimitAttention: {self.pattern} leaves no key to attend to for token "
                    f"{query} of example {row} at {site}. Choose a pattern that includes the "
                    "token itself."
                )
            kept = torch.where(lost & own, total, kept)
            left = kept.sum(3, keepdim=True)
        new = kept * (total / torch.where(left >= least, left, torch.ones_like(left)))
        return torch.where(here[:, :, None, None], new, probs).flatten(2)

    def outside(
        self, x: Float[Tensor, "example query heads_keys"], site: Site, context: EditContext
    ) -> Float[Tensor, "example query"]:
        """Return the fraction of each query's attention on keys outside the pattern."""
        probs = self._by_head(x, site)
        gone = probs.masked_fill(self.allowed(probs, context), 0.0).sum((2, 3))
        return gone / probs.sum((2, 3)).clamp(min=1e-12)

    def allowed(
        self, probs: Float[Tensor, "example query head key"], context: EditContext
    ) -> Bool[Tensor, "example query head key"]:
        """Return the mask of the keys that each query may attend to."""
        _, n_queries, n_heads, n_keys = probs.shape
        _, place = positions(probs, context, False)
        first = place < self.prefix
        where = Where(
            (place[:, self.prefix :] if self.grid else place) - (self.prefix if self.grid else 0),
            (place >= self.prefix)[:, self.prefix :] if self.grid else place >= 0,
            n_heads,
            self.grid,
            generator=torch.Generator().manual_seed(self.seed),
        )
        inside = pattern_of(self.pattern).allowed(where)
        if self.grid:
            whole = inside.new_zeros(*inside.shape[:2], n_keys, n_keys)
            whole[:, :, self.prefix :, self.prefix :] = inside
            inside = whole
        if self.prefix:
            inside = inside | first[:, None, None] | first[:, None, :, None]
        return inside[:, :, n_keys - n_queries :].transpose(1, 2).expand_as(probs)

    def _by_head(self, x: Tensor, site: Site) -> Tensor:
        heads = self.n_heads
        if heads is None:
            heads, rest = divmod(x.shape[-1], x.shape[1])
            if rest or not heads:
                raise InputError(
                    f"LimitAttention: expected equally many keys and queries at {site}, got a "
                    f"row of {x.shape[-1]} for {x.shape[1]} queries. Pass n_heads (for "
                    "generate, say)."
                )
        return by_head(x, heads, f"LimitAttention at {site}")
