"""Divergences and entropies of distributions given as log-probabilities."""

import torch
from jaxtyping import Float
from torch import Tensor


def kl_divergence(
    log_p: Float[Tensor, "*axes class"], log_q: Float[Tensor, "*#axes class"]
) -> Float[Tensor, "*axes"]:
    """Return ``KL(p || q)`` of each row, in nats.

    A class that ``p`` rules out (``-inf``, as of masked logits) counts 0; a class that ``q`` alone
    rules out makes the divergence infinite.

    Examples
    --------
    >>> p = torch.tensor([0.0, 0.0, -torch.inf]).log_softmax(0)
    >>> q = torch.tensor([0.0, 1.0, -torch.inf]).log_softmax(0)
    >>> [round(float(kl_divergence(a, b)), 4) for a, b in ((p, p), (p, q))]
    [0.0, 0.1201]
    """
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


def entropy(log_p: Float[Tensor, "*axes class"]) -> Float[Tensor, "*axes"]:
    """Return each row's entropy in nats; an impossible class (``-inf``) counts 0."""
    return -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)
