"""Statistics of each head's probabilities: one number per query, for texts of any length."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Probs = Float[Tensor, "example query head key"]
Seen = Bool[Tensor, "_example _head query key"] | None


def figures(
    probs: Probs, seen: Seen, first_query: int | None
) -> dict[str, Callable[[], Float[Tensor, "example query head"]]]:
    """Return a function for each statistic of attention probabilities.

    ``entropy`` is divided by its maximum, the logarithm of the number of keys in sight of a query,
    and is 1 if the query sees a single key; ``entropy_nats`` is not divided. ``first`` is the
    probability of the first key in sight of any query, ``self`` that of the query's own token,
    ``distance`` the mean number of tokens between a query and its keys.

    Parameters
    ----------
    probs : Float[Tensor, "example query head key"]
    seen : Bool[Tensor, "_example _head query key"] or None
        Which keys each query may see; None for all.
    first_query : int or None
        Which key is the first query's own token; None if the keys belong to another text.
    """
    functions = {
        "entropy": partial(_share, probs, seen),
        "entropy_nats": partial(_nats, probs),
        "first": partial(_first, probs, seen),
    }
    if first_query is not None:
        functions["self"] = partial(_own, probs, first_query)
        functions["distance"] = partial(_distance, probs, first_query)
    return functions


def _nats(probs: Probs) -> Tensor:
    wide = probs.float()
    return -torch.xlogy(wide, wide).sum(-1)


def _share(probs: Probs, seen: Seen) -> Tensor:
    if seen is None:
        count = probs.new_full((1, 1, 1), probs.shape[-1], dtype=torch.float32)
    else:
        count = seen.sum(-1).movedim(1, 2).float()
    return torch.where(count < 2, 1.0, _nats(probs) / count.clamp(min=2).log())


def _first(probs: Probs, seen: Seen) -> Tensor:
    if seen is None:
        return probs[..., 0].float()
    at = seen.any(-2).to(torch.uint8).argmax(-1)[:, None, :, None]  # (example, 1, head, 1)
    at = at.expand(*probs.shape[:3], 1)
    return probs.gather(-1, at)[..., 0].float()


def _own(probs: Probs, first_query: int) -> Tensor:
    return probs.float().diagonal(first_query, 1, 3).movedim(-1, 1)


def _distance(probs: Probs, first_query: int) -> Tensor:
    query = torch.arange(probs.shape[1], device=probs.device)[:, None] + first_query
    key = torch.arange(probs.shape[3], device=probs.device)
    gap = (query - key).abs().float()
    return torch.einsum("bqhk,qk->bqh", probs.float(), gap)
