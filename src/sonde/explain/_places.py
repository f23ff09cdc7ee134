"""Positions of a tensor (pixels, tokens, units of a row) that can be removed one by one."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.explain.attribution import Attribution
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import SiteFunction, Varied

MOST_ROWS = 256
"""Rows of one forward, so that memory does not grow with the number of sets."""


@dataclass(frozen=True, eq=False)
class ExamplePlaces:
    """Values at the positions of each example, and the baseline that replaces removed positions.

    Places are the tokens or pixels of what is varied; of a row of numbers, the numbers. Those of
    several inputs come one input after another.

    Parameters
    ----------
    x, base : Float[Tensor, "row entry"]
    place : Int[Tensor, "entry"]
        The place of each entry.
    real : Bool[Tensor, "row place"]
        Padding is never taken away.
    shape : tuple of int
        Of the values, examples first.
    """

    x: Float[Tensor, "row entry"]
    base: Float[Tensor, "row entry"]
    place: Int[Tensor, "entry"]
    real: Bool[Tensor, "row place"]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, function: SiteFunction, baseline: Baseline) -> "ExamplePlaces":
        """Return the positions of a site: tokens, pixels, or the entries of a row of numbers."""
        value, base = function.value, baseline.at(function)
        places, reals, n = list[Tensor](), list[Tensor](), 0
        for part in function.parts:
            own = _places_of(part)
            real = torch.ones(len(value), int(own.max()) + 1, dtype=torch.bool)
            if part.mask is not None and part.mask.shape == real.shape:
                real = part.mask
            places.append(own.flatten() + n)
            reals.append(real.to(value.device))
            n += real.shape[1]
        place, real = torch.cat(places).to(value.device), torch.cat(reals, dim=1)
        return cls(value.flatten(1), base.flatten(1), place, real, tuple(value.shape))

    @property
    def n(self) -> int:
        """Number of positions."""
        return self.real.shape[1]

    def scores(self, found: Attribution) -> Float[Tensor, "row place"]:
        """Return an attribution as one number for each position.

        Raises
        ------
        ShapeError
            If the attribution has other places than the site.
        """
        own = found.value if len(self.shape) == 2 else found.by_place
        flat = torch.as_tensor(found.per_place if found.inputs else own)
        flat = flat.reshape(len(flat), -1)
        if flat.shape != self.real.shape:
            raise ShapeError(
                f"judge: expected an attribution over {tuple(self.real.shape)} positions, got "
                f"{tuple(flat.shape)}. Upsample the map to the size of the picture first "
                "(upsampled), or judge it at the site where it was computed."
            )
        return flat.to(self.x)

    def order(self, scores: Float[Tensor, "row place"], seed: int) -> Int[Tensor, "row place"]:
        """Return the positions by decreasing score, padding last, ties in seeded random order."""
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(self.n, generator=generator).to(scores.device)
        ranked = scores.masked_fill(~self.real, -torch.inf)[:, shuffled]
        return shuffled[ranked.argsort(dim=1, descending=True, stable=True)]

    def without(self, gone: Bool[Tensor, "row place"]) -> Tensor:
        """Return the values, with the baseline at removed positions, in the shape of the site."""
        at = (gone & self.real)[:, self.place]
        return torch.where(at, self.base, self.x).reshape(self.shape)

    def spread(self, each: Float[Tensor, "row place"]) -> Tensor:
        """Return each position's value, split evenly over its features, in the site's shape."""
        shared = each.to(self.x) / torch.bincount(self.place, minlength=self.n)
        return shared[:, self.place].reshape(self.shape)

    def number_of_sets(
        self,
        function: SiteFunction,
        objective: FixedObjective,
        kept: Bool[Tensor, "set place"],
    ) -> Float[Tensor, "row set"]:
        """Return the objective with only the positions of each set; all rows share the sets."""
        columns: list[Tensor] = []
        size = max(1, MOST_ROWS // max(function.n, 1))
        for sets in kept.split(size):
            k = len(sets)
            gone = ~sets.to(self.x.device).unsqueeze(0) & self.real.unsqueeze(1)
            x = torch.where(gone[..., self.place], self.base[:, None], self.x[:, None])
            values = x.flatten(0, 1).reshape(-1, *self.shape[1:])
            with torch.no_grad():
                numbers = objective.repeated(k).of(function.run(values, k)).detach()
            columns.append(numbers.double().cpu().reshape(function.n, k))
        return torch.cat(columns, dim=1)


def _places_of(part: Varied) -> Int[Tensor, "..."]:
    """Return the position index of each entry of one example, in the shape of the part."""
    shape = part.value.shape[1:]
    if len(shape) < 2:
        return torch.arange(shape.numel())
    axis = part.axis - 1
    outer = [n for i, n in enumerate(shape) if i != axis]
    places = torch.arange(torch.Size(outer).numel()).reshape(outer)
    return places.unsqueeze(axis).expand(shape)
