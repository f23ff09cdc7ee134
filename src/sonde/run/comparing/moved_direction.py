"""The direction in which a site's mean moved, with the units that moved most."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.detect._sides import TwoSamples
from sonde.run.fitting.evidence import moments
from sonde.run.fitting.fitted import Fitted

NAMED = 8
ROUNDING = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class MovedDirection:
    """Direction in which the mean of a site moved.

    Parameters
    ----------
    vector : Tensor
        Of length 1; zeros where the mean did not move.
    length : float
        How far the mean moved, in the units of the rows.
    deviations : float or None
        The length in pooled standard deviations along the direction; None without covariances.
    beyond_noise : float or None
        Share of the squared length beyond its mean under no change, at least 0; None if the
        length is 0.
    """

    vector: Float[Tensor, "dim"]
    length: float
    deviations: float | None
    beyond_noise: float | None

    def units(self, count: int = NAMED) -> list[tuple[int, float]]:
        """Return the units with the largest components, each with its component."""
        top = self.vector.abs().argsort(descending=True, stable=True)[:count].tolist()
        return [(unit, float(self.vector[unit])) for unit in top if float(self.vector[unit])]


def moved_direction(
    first: Fitted, second: Fitted, key: str, sides: tuple[int, int], pairs: TwoSamples | None
) -> MovedDirection | None:
    """Return how a site's mean moved, or None if a bundle holds no moments of the site.

    Parameters
    ----------
    first, second : Fitted
    key : str
        The site.
    sides : (int, int)
        Number of independent rows of each side.
    pairs : TwoSamples or None
        The paired samples, if both sides hold the same rows.
    """
    a, b = moments(first, key), moments(second, key)
    if a is None or b is None or len(a.mean) != len(b.mean):
        return None
    delta = b.mean - a.mean
    length = float(delta.norm())
    unit = delta / length if length > 0 else torch.zeros_like(delta)
    total = a.scatter if a.scatter.ndim == 1 or b.scatter.ndim == 2 else a.scatter.diagonal()
    other = b.scatter if b.scatter.ndim == total.ndim else b.scatter.diagonal()
    along = None
    if total.ndim == 2 and length > 0:
        variance = float(unit @ (total + other) @ unit) / max(a.n + b.n - 2, 1)
        along = length / variance**0.5 if variance > 0 else None
    noise = _noise(a, b, sides, pairs)
    beyond = None if length == 0 else max(0.0, 1 - noise / length**2)
    return MovedDirection(unit, length, along, beyond)


def _noise(a: Any, b: Any, sides: tuple[int, int], pairs: TwoSamples | None) -> float:
    """Return the expected squared distance of the two means if the distribution did not change.

    It is at least what the rounding of sums in float32 gives, which depends on the order of rows.
    """
    rounding = ROUNDING**2 * max(float((m.variance + m.mean**2).sum()) for m in (a, b))
    if pairs is not None:
        gap = pairs.y - pairs.x
        return max(rounding, float(gap.var(0).sum()) / min(sides))
    spreads = [float(m.variance.sum()) * m.n / max(m.n - 1, 1) for m in (a, b)]
    return max(rounding, spreads[0] / sides[0] + spreads[1] / sides[1])
