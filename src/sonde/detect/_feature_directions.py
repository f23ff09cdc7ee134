"""A direction at one site for each feature that two prompts ask about, from pairs of answers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.detect._contrasts import ContrastSampleState


@dataclass(frozen=True)
class Directions:
    """A direction for each feature, and how far its two ways of choosing one agree."""

    direction: list[Float[Tensor, "dim"]]
    cosine: Float[Tensor, "feature"]
    pairs: Int[Tensor, "feature"]


def directions_of(contrasts: ContrastSampleState, features: int, which: str) -> Directions:
    """Return a direction of unit length for each feature at one site; zeros where none varies."""
    chosen, cosines, counts = [], [], []
    for f in range(features):
        gap = contrasts.differences(2 * f, 2 * f + 1)
        if len(gap) < 2:
            raise InputError(
                f"FeatureGaps: expected at least 2 answers with sides {2 * f} and {2 * f + 1}, the "
                f"two prompts of feature {f}, got {len(gap)}. Give both rows one value of 'pair', "
                "or say how many features there are (features=)."
            )
        mean = gap.mean(0)
        principal = _principal(gap - mean, 1e-9 * float(gap.norm()))
        length = mean.norm()
        middle = mean / length if float(length) > 0 else mean
        cosines.append((principal @ middle).abs())
        chosen.append(principal if which == "pc" else middle)
        counts.append(len(gap))
    return Directions(chosen, torch.stack(cosines), torch.tensor(counts))


def _principal(centred: Float[Tensor, "row dim"], floor: float) -> Float[Tensor, "dim"]:
    """Return the first principal axis of centred rows; zeros where they vary less than a floor."""
    n, dim = centred.shape
    gram = centred @ centred.T if n < dim else centred.T @ centred
    values, vectors = torch.linalg.eigh(gram)
    axis = centred.T @ vectors[:, -1] if n < dim else vectors[:, -1]
    varies = float(values[-1].clamp(min=0).sqrt()) > floor
    return axis / axis.norm() if varies else torch.zeros_like(axis)
