"""Rows that are sums of few planted directions of either sign, and what a dictionary finds of them.

The sizes of the three directions of a row are even in [1, 2]. A direction counts as recovered where
a feature has an absolute cosine above .9 with it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from sonde.explain import Dictionary

FEATURES, DIM, ACTIVE = 32, 20, 3
ALIKE, RARER = 0.9, 0.25


def planted(n: int, seed: int) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "direction dim"]]:
    """Return rows, and the planted directions that they are sums of."""
    source = torch.Generator().manual_seed(seed)
    true = normalize(torch.randn(FEATURES, DIM, generator=source), dim=1)
    index = torch.rand(n, FEATURES, generator=source).topk(ACTIVE, 1).indices
    size = 1 + torch.rand(n, ACTIVE, generator=source)
    sign = 2 * torch.randint(0, 2, (n, ACTIVE), generator=source) - 1
    return (true[index] * (size * sign)[:, :, None]).sum(1), true


def recovered(found: Dictionary, true: Float[Tensor, "direction dim"]) -> float:
    """Return the fraction of directions that some feature matches, up to sign."""
    return float((_likeness(found, true).amax(0) > ALIKE).double().mean())


def both_signs(
    found: Dictionary, x: Float[Tensor, "row dim"], true: Float[Tensor, "direction dim"]
) -> float:
    """Return the fraction of directions whose feature is often positive and often negative."""
    best = _likeness(found, true).max(0)
    even = has_both_signs(found.encode(x)[:, best.indices])
    return float(((best.values > ALIKE) & even).double().mean())


def has_both_signs(z: Float[Tensor, "row feature"]) -> Bool[Tensor, "feature"]:
    """Return whether the rarer sign has more than a quarter of a feature's active rows."""
    up, down = (z > 0).double().mean(0), (z < 0).double().mean(0)
    return torch.minimum(up, down) > RARER * (up + down)


def _likeness(
    found: Dictionary, true: Float[Tensor, "direction dim"]
) -> Float[Tensor, "feature direction"]:
    return (normalize(found.decoder, dim=1) @ true.T).abs()
