"""Control for every edit: a change of equal length in a random direction."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext, Scale
from sonde.core.site import Site


@final
@dataclass(frozen=True, eq=False)
class RandomDirection(Edit):
    """Move each row as far as another edit does, along one random direction.

    What the other edit does beyond this is due to its direction; what both do, to its size.

    Cost         that of the other edit and one norm for each row.

    Parameters
    ----------
    edit : Edit
        The edit whose lengths are taken.
    seed : int, default=0
        Seed of the direction, which is uniform over the sphere.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.

    Examples
    --------
    >>> from sonde.core import Add
    >>> edit = RandomDirection(Add(torch.tensor([3.0, 4.0])))
    >>> moved = edit.apply(torch.zeros(1, 2), Site("0"), EditContext())
    >>> round(float(moved.norm()), 5)
    5.0
    """

    edit: Edit
    seed: int = 0
    strength: float = 1.0
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"edit": Scale(2.0)},)

    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return ``x + strength |edit(x) - x| u`` with a random unit vector ``u``."""
        if self.strength == 0.0:
            return x
        length = (self.edit.apply(x, site, context) - x).norm(dim=-1, keepdim=True)
        generator = torch.Generator().manual_seed(self.seed)
        direction = torch.randn(x.shape[-1], generator=generator, dtype=torch.float64)
        return x + self.strength * length * (direction / direction.norm()).to(x)
