"""The places of a tensor (pixels, tokens, units of a row) that can be taken away one by one."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.explain.attribution import Attribution
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import SiteFunction

MOST_ROWS = 256
"""Rows of one forward, so that memory does not grow with the number of sets."""


@dataclass(frozen=True, eq=False)
class ExamplePlaces:
    """Values at the places of each example, and what stands there when a place is taken away.

    Parameters
    ----------
    x, base : Float[Tensor, "row place feature"]
    real : Bool[Tensor, "row place"]
        Padding is never taken away.
    """

    x: Float[Tensor, "row place feature"]
    base: Float[Tensor, "row place feature"]
    real: Bool[Tensor, "row place"]
    shape: tuple[int, ...]
    axis: int

    @classmethod
    def of(cls, function: SiteFunction, baseline: Baseline) -> "ExamplePlaces":
        """Return the places of a site: its tokens or pixels; of a row of numbers, the numbers."""
        value, base = function.value, baseline.at(function)
        axis = function.feature_axis if value.ndim > 2 else -1
        x, base = (_split(v, axis) for v in (value, base))
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mask = function.mask
        if mask is not None:
            real = mask.to(x.device)
        return cls(x, base, real, tuple(value.shape), axis)

    @property
    def n(self) -> int:
        """How many places there are."""
        return self.x.shape[1]

    def scores(self, found: Attribution) -> Float[Tensor, "row place"]:
        """Return an attribution as one number for each place.

        Raises
        ------
        ShapeError
            If the attribution has other places than the site.
        """
        value = torch.as_tensor(found.value)
        flat = value if len(self.shape) == 2 else found.by_place
        flat = flat.reshape(len(flat), -1)
        if flat.shape != self.x.shape[:2]:
            raise ShapeError(
                f"judge: expected an attribution over {tuple(self.x.shape[:2])} places, got "
                f"{tuple(flat.shape)}. Grow a map to the picture first (upsampled), or judge it at "
                "the site that it was made for."
            )
        return flat.to(self.x)

    def order(self, scores: Float[Tensor, "row place"], seed: int) -> Int[Tensor, "row place"]:
        """Return the places by falling score, padding last; equal ones in a seeded random order."""
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(self.n, generator=generator).to(scores.device)
        ranked = scores.masked_fill(~self.real, -torch.inf)[:, shuffled]
        return shuffled[ranked.argsort(dim=1, descending=True, stable=True)]

    def without(self, gone: Bool[Tensor, "row place"]) -> Tensor:
        """Return the values with the baseline at some places, in the shape of the site."""
        return self.values(torch.where((gone & self.real).unsqueeze(-1), self.base, self.x))

    def values(self, x: Float[Tensor, "row place feature"]) -> Tensor:
        """Return values in the shape of the site."""
        if len(self.shape) == 2:
            return x.squeeze(-1)
        wide = [n for i, n in enumerate(self.shape) if i != self.axis]
        return x.reshape(*wide, x.shape[-1]).movedim(-1, self.axis)

    def number_of_sets(
        self,
        function: SiteFunction,
        objective: FixedObjective,
        kept: Bool[Tensor, "set place"],
    ) -> Float[Tensor, "row set"]:
        """Return the objective with only the places of each set left; all rows share the sets."""
        found: list[Tensor] = []
        size = max(1, MOST_ROWS // max(function.n, 1))
        for sets in kept.split(size):
            k = len(sets)
            gone = ~sets.to(self.x.device).unsqueeze(0) & self.real.unsqueeze(1)
            x = torch.where(gone.unsqueeze(-1), self.base[:, None], self.x[:, None])
            shaped = [self.values(x[:, i]) for i in range(k)]
            values = torch.stack(shaped, dim=1).flatten(0, 1)
            with torch.no_grad():
                numbers = objective.repeated(k).of(function.run(values, k)).detach()
            found.append(numbers.double().cpu().reshape(function.n, k))
        return torch.cat(found, dim=1)


def _split(value: Tensor, axis: int) -> Float[Tensor, "row place feature"]:
    if value.ndim == 2:
        return value.unsqueeze(-1)
    wide = value.movedim(axis, -1)
    return wide.reshape(len(wide), -1, wide.shape[-1])
