"""Parts of a state that are patched one by one: positions, units, or the whole state."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.site import Site
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.axes import guess_axes

Over = Literal["positions", "units", "whole"]


@dataclass(frozen=True, eq=False)
class Points:
    """Partition of the states at one site into parts ("points").

    Parameters
    ----------
    shape : tuple of int
        Of the states, examples first.
    axis : int
        Of features.
    over : {"positions", "units", "whole"}
    """

    shape: tuple[int, ...]
    axis: int
    over: Over

    @classmethod
    def of(cls, x: Tensor, site: Site, module: nn.Module, over: Over) -> "Points":
        """Return the points of the states at a site."""
        axis = x.ndim - 1
        if x.ndim > 3:
            axis = guess_axes(x, ModuleNames(module).modules[site.path], module).words.index("dim")
        return cls(tuple(x.shape), axis, over)

    @property
    def n(self) -> int:
        """Number of points."""
        width = self.shape[self.axis]
        places = 1
        for size in self.shape[1:]:
            places *= size
        return {"positions": places // width, "units": width, "whole": 1}[self.over]

    def by_place(self, x: Tensor) -> Float[Tensor, "row place unit"]:
        """Return the states in the shape (row, position, unit)."""
        wide = x.movedim(self.axis, -1)
        return wide.reshape(len(wide), -1, wide.shape[-1])

    def states(self, x: Float[Tensor, "row place unit"]) -> Tensor:
        """Return states in their original shape from the shape (row, position, unit)."""
        sizes = [n for i, n in enumerate(self.shape) if i not in (0, self.axis)]
        return x.reshape(len(x), *sizes, x.shape[-1]).movedim(-1, self.axis)

    def sums(self, x: Tensor) -> Float[Tensor, "row point"]:
        """Return the sum of a tensor over each point."""
        parts = self.by_place(x)
        if self.over == "whole":
            return parts.sum((1, 2))[:, None]
        return parts.sum(2 if self.over == "positions" else 1)

    def differ(self, a: Tensor, b: Tensor) -> Bool[Tensor, "point"]:
        """Return the points at which two batches of states differ."""
        return self.sums((a != b).float()).any(0)

    def swapped(
        self, base: Tensor, source: Tensor, points: list[int], rows: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield, for each point, the point and base states that take this point from the source.

        At most ``rows`` examples come at once, but at least one batch.
        """
        old, new = self.by_place(base), self.by_place(source)
        size = max(1, rows // max(len(old), 1))
        for start in range(0, len(points), size):
            part = points[start : start + size]
            states = old.repeat(len(part), 1, 1, 1)
            for i, point in enumerate(part):
                if self.over == "whole":
                    states[i] = new
                elif self.over == "positions":
                    states[i, :, point] = new[:, point]
                else:
                    states[i, :, :, point] = new[:, :, point]
            yield part, self.states(states.flatten(0, 1))
