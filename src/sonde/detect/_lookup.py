"""Attention from patches to a dictionary of normal patches, with fixed or trained maps."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sonde.detect.knn import to_unit_length
from sonde.stats import sparsemax
from sonde.stats.training import generator, xavier
from sonde.stats.training_weights import Weights

QUERY, KEY, VALUE = range(3)


@dataclass(frozen=True)
class Generators:
    """Maps from unit patches to queries, keys and values; the identity without weights.

    Each map adds the output of one hidden layer to the patch, so a map with ``second`` zero changes
    nothing. There are no offsets: zeros stay zeros.

    Parameters
    ----------
    weights : tuple of Tensor
        ``first (hidden, dim)`` and ``second (dim, hidden)`` of each map; empty for none.
    """

    weights: tuple[Tensor, ...] = ()

    def __call__(self, which: int, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return the output of one map for unit patches, scaled to unit length."""
        if not self.weights:
            return x
        first, second = (w.to(x) for w in self.weights[2 * which : 2 * which + 2])
        wide = x * math.sqrt(x.shape[1])
        return to_unit_length(wide + functional.gelu(wide @ first.T) @ second.T)


def starting_weights(dim: int, hidden: int, seed: int) -> Weights:
    """Return seeded weights of the three maps, equal to the identity before training."""
    source = generator("lookup", seed)
    maps = [(xavier(source, hidden, dim), torch.zeros(dim, hidden)) for _ in (QUERY, KEY, VALUE)]
    return Weights.of(*(weight for one in maps for weight in one))


def retrieval(
    query: Float[Tensor, "row dim"],
    keys: Float[Tensor, "entry dim"],
    temperature: float,
    allowed: Bool[Tensor, "row entry"] | None = None,
) -> Float[Tensor, "row entry"]:
    """Return each query's sparsemax weights over the entries, for rows of unit length.

    Entries that are not ``allowed`` get the weight 0.
    """
    z = query @ keys.T / temperature
    if allowed is not None:
        z = torch.where(allowed, z, z.detach().amin() - 2)
    return sparsemax(z)


def misfit(
    generators: Generators,
    x: Float[Tensor, "row dim"],
    keys: Float[Tensor, "entry dim"],
    values: Float[Tensor, "entry dim"],
    temperature: float,
    allowed: Bool[Tensor, "row entry"] | None = None,
) -> Float[Tensor, "row"]:
    """Return ``(1 - cosine) / 2`` between each unit patch's value and its retrieved mean value."""
    weights = retrieval(generators(QUERY, x), keys, temperature, allowed)
    return (1 - (generators(VALUE, x) * to_unit_length(weights @ values)).sum(1)) / 2
