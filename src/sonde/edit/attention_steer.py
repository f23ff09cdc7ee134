"""Move attention between regions: use another run's probabilities, or forbid pairs.

For the port ``probs`` of attentions whose tokens or patches have a known place. Values stay as they
are: to bring in what another run *computed*, take ``Inject``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.ranges import check_ranges
from sonde.core.site import Site
from sonde.edit._probs import by_head, positions

Positions = tuple[int, ...]


@final
@dataclass(frozen=True)
class AttentionSteer(Edit):
    """Set the attention from the queries of one region to the keys of another; keep row sums.

    ``prior`` gives these keys the probabilities that they have in another run; ``forbid`` gives
    them none, as a mask before the softmax would. The other keys of a row keep their proportions
    and share what is left, so the sum of the row stays. ``strength`` mixes the new rows with the
    old ones.

    Range        rows stay distributions; forbidden entries are exactly 0 at strength 1.
    Cost         the layer's attention without its fused kernel; for ``prior`` also the other run.
    Assumes      the port ``probs`` with all heads; a cache that grows with the text; for ``prior``
                 ``EditContext.others`` with the same queries and keys.
    Differs      from the paper: regions are positions; diffusion steps are unknown: limit the
                 steering by ``calls``.

    Parameters
    ----------
    n_heads : int
        Heads of the attention; 1 at the port of a single head, such as ``probs.3``.
    queries, keys : tuple of int, optional
        Positions of each region in its text, padding not counted; all by default.
    how : {"prior", "forbid"}, default="prior"
        Give the keys the probabilities of another run (``prior``), or none (``forbid``).
    source : str, default="source"
        The name of the other run.
    other_text : bool, default=False
        Whether the keys are of another text than the queries (cross-attention).
    calls : int, optional
        How many calls of the site are steered, from the first on; all by default.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.

    Examples
    --------
    >>> probs = torch.tensor([[[0.5, 0.25, 0.25]]])
    >>> AttentionSteer(1, keys=(0,), how="forbid", other_text=True).apply(
    ...     probs, Site("0:probs"), EditContext()
    ... ).tolist()
    [[[0.0, 0.5, 0.5]]]

    References
    ----------
    wang2024primecomposer
    """

    n_heads: int
    queries: Positions | None = None
    keys: Positions | None = None
    how: Literal["prior", "forbid"] = "prior"
    source: str = "source"
    other_text: bool = False
    calls: int | None = None
    strength: float = 1.0
    paper: ClassVar[str] = "wang2024primecomposer"

    def __post_init__(self) -> None:
        _check_regions("AttentionSteer", self.n_heads, self.queries, self.keys)
        check_ranges(self, how=("prior", "forbid"))
        if self.how == "forbid" and self.keys is None:
            raise InputError(
                "AttentionSteer: expected keys to forbid, got all keys. Name some of them."
            )
        if not 0 <= self.strength <= 1:
            raise InputError(
                f"AttentionSteer: expected a strength in [0, 1], got {self.strength}: above 1, "
                "probabilities would be negative."
            )

    def apply(
        self, x: Float[Tensor, "example query heads_keys"], site: Site, context: EditContext
    ) -> Float[Tensor, "example query heads_keys"]:
        """Return the steered probabilities.

        Raises
        ------
        InputError
            If a query sees only forbidden keys, or the other run is missing.
        """
        if self.strength == 0.0 or (self.calls is not None and context.call >= self.calls):
            return x
        probs = by_head(x, self.n_heads, f"AttentionSteer at {site}")
        chosen = _pairs(probs, self.queries, self.keys, context, self.other_text)
        if not bool(chosen.any()):
            return x
        prior = torch.zeros_like(probs) if self.how == "forbid" else self._prior(x, site, context)
        new = _with_prior(probs, prior, chosen, site)
        return (new if self.strength == 1.0 else torch.lerp(probs, new, self.strength)).flatten(2)

    def _prior(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        if self.source not in context.others:
            raise InputError(
                f"AttentionSteer: expected probabilities of the run {self.source!r} at {site}, got "
                f"{sorted(context.others) or 'none'}. Give them to sonde.editing(others=...)."
            )
        prior = context.others[self.source].to(x)
        if prior.shape != x.shape:
            raise ShapeError(
                "AttentionSteer: expected another run's probabilities of shape "
                f"{tuple(x.shape)}, got {tuple(prior.shape)} at {site}. Run both with the same "
                "number of queries and keys."
            )
        return by_head(prior, self.n_heads, "AttentionSteer")


def attention_mass(
    probs: Float[Tensor, "example query heads_keys"],
    n_heads: int,
    queries: Positions | None = None,
    keys: Positions | None = None,
) -> Float[Tensor, "example head"]:
    """Return the fraction of attention from the queries of one region to another's keys.

    Parameters
    ----------
    probs : Float[Tensor, "example query heads_keys"]
        Attention probabilities, as ``Tap`` reads them at the port ``probs``, without padding.
    n_heads : int
        Number of attention heads.
    queries, keys : tuple of int, optional
        Positions as the attention counts them; all by default.

    Examples
    --------
    >>> attention_mass(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]), 1, (1,), (0,)).item()
    0.8999999761581421
    """
    _check_regions("attention_mass", n_heads, queries, keys)
    every = by_head(probs, n_heads, "attention_mass")
    chosen = _pairs(every, queries, keys, EditContext(), True)
    total = (every * chosen).sum((1, 3))
    return total / chosen.any(3).sum((1, 2)).clamp(min=1)[:, None]


def _with_prior(probs: Tensor, prior: Tensor, chosen: Tensor, site: Site) -> Tensor:
    """Return rows with the prior at chosen entries, and the other entries rescaled."""
    total = probs.sum(3, keepdim=True)
    given = prior.masked_fill(~chosen, 0.0)
    rest = probs.masked_fill(chosen, 0.0)
    left = total - given.sum(3, keepdim=True)
    has_rest = rest.sum(3, keepdim=True) > 0
    rest = torch.where(has_rest, rest, prior.masked_fill(chosen, 0.0))
    sums = rest.sum(3, keepdim=True)
    lost = chosen.any(3, keepdim=True) & (sums <= 0) & (left > 1e-3 * total)
    if bool(lost.any()):
        raise InputError(
            "AttentionSteer: expected at least one key for every query to attend to, got "
            f"{int(lost.sum())} rows without any at {site}. Forbid fewer keys, or name queries "
            "that attend to several keys (the first token of a text attends only to itself)."
        )
    new = given + rest * (left / torch.where(sums > 0, sums, torch.ones_like(sums)))
    return torch.where(chosen.any(3, keepdim=True), new, probs)


def _pairs(
    probs: Float[Tensor, "example query head key"],
    queries: Positions | None,
    keys: Positions | None,
    context: EditContext,
    other_text: bool,
) -> Bool[Tensor, "example query 1 key"]:
    """Return the mask of query-key pairs in the two regions, without padding queries."""
    mask = context.mask
    rows, columns = positions(probs, context, other_text)
    chosen = _in(rows, queries)[:, :, None] & _in(columns, keys)[:, None, :]
    return (chosen if mask is None else chosen & mask[:, :, None])[:, :, None]


def _in(position: Tensor, region: Positions | None) -> Tensor:
    if region is None:
        return torch.ones_like(position, dtype=torch.bool)
    return torch.isin(position, torch.tensor(region, device=position.device))


def _check_regions(
    owner: str, n_heads: int, queries: Positions | None, keys: Positions | None
) -> None:
    if n_heads < 1:
        raise InputError(f"{owner}: expected at least one head, got {n_heads}.")
    for name, region in (("queries", queries), ("keys", keys)):
        if region is not None and (not region or min(region) < 0):
            raise InputError(f"{owner}: expected positions from 0 on as {name}, got {region}.")
