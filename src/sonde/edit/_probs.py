"""Attention probabilities at the port ``probs``: split by head, with the tokens' positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.edit import EditContext
from sonde.core.errors import ShapeError


def by_head(
    x: Float[Tensor, "example query heads_keys"], n_heads: int, owner: str
) -> Float[Tensor, "example query head key"]:
    """Return the probabilities with an axis of heads.

    Raises
    ------
    ShapeError
        If the width is no multiple of ``n_heads``.
    """
    if x.ndim != 3 or x.shape[2] % n_heads:
        raise ShapeError(
            f"{owner}: expected probabilities (example, query, {n_heads} heads x keys), got shape "
            f"{tuple(x.shape)}. Read the port probs, and name the heads of the attention."
        )
    return x.unflatten(2, (n_heads, -1))


def positions(
    probs: Float[Tensor, "example query head key"], context: EditContext, other_text: bool
) -> tuple[Int[Tensor, "example query"], Int[Tensor, "example key"]]:
    """Return each query's and key's position in its text; left padding is below 0."""
    n, n_queries, _, n_keys = probs.shape
    device, mask = probs.device, context.mask
    columns = torch.arange(n_keys, device=device).expand(n, -1)
    rows = torch.arange(n_queries, device=device).expand(n, -1)
    if context.position is not None:
        if not other_text:  # padding on the left comes before the first position
            first = (
                torch.zeros_like(rows[:, :1]) if mask is None else mask.long().argmax(1)[:, None]
            )
            columns = columns - (n_keys - n_queries + first - context.position.gather(1, first))
        rows = context.position
    return rows, columns
