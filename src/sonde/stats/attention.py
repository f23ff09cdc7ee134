"""Entropy of attention, for the loss and the measure that are named after it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def query_entropy(
    probs: Float[Tensor, "*axes key"], seen: Bool[Tensor, "*axes key"]
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Return each query's attention entropy in nats, and its maximum for the query's keys.

    ``-sum_j p_j ln p_j`` and ``ln m`` with the ``m`` keys in sight. A query with a single key gives
    0 twice. Hidden keys get no gradient.

    Parameters
    ----------
    probs : Float[Tensor, "*axes key"]
        Attention probabilities; the last axis runs over the keys.
    seen : Bool[Tensor, "*axes key"]
        Which keys each query may see.
    """
    p = torch.where(seen & (probs > 0), probs, 1.0)
    return -(p * p.log()).sum(-1), seen.sum(-1).to(probs.dtype).log()
