"""Train a small masked autoencoder on the decoder states of a large masked autoencoder.

The first, generic stage of two: then drop both decoders and teach the task with ``Distil``.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError


@final
class GenericToSpecific(nn.Module):
    """Smooth L1 distance of a student decoder's states to a teacher decoder's at each position.

    Both nets see the same visible patches. A learned linear map brings the student's states to the
    teacher's width; the teacher's states are normalised at each position.

    Range        [0, inf); 0 = the teacher's states.
    Cost         O(pos dim dim2) for each row.
    Assumes      states (row, pos, dim) of a middle layer of both decoders, positions in the same
                 order; no gradient goes to the teacher.

    Parameters
    ----------
    dim, dim2 : int
        Width of the student's and of the teacher's states.
    over : {"all", "masked", "visible"}, default="all"
        Positions that count.

    References
    ----------
    huang2023g2sd
    """

    paper: ClassVar[str] = "huang2023g2sd"
    reducer: ClassVar[None] = None  # states with their positions

    def __init__(
        self, dim: int, dim2: int, over: Literal["all", "masked", "visible"] = "all"
    ) -> None:
        super().__init__()
        self.line, self.over = nn.Linear(dim, dim2), over

    @in_float32
    def forward(
        self,
        x: Float[Tensor, "row pos dim"],
        y: Float[Tensor, "row pos dim2"],
        mask: Bool[Tensor, "row pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean distance over positions and units.

        Parameters
        ----------
        x, y : Float[Tensor, "row pos dim"]
            States of the student and of the teacher.
        mask : Bool[Tensor, "row pos"], optional
            True where a patch was hidden; needed unless all positions count.
        """
        if mask is None and self.over != "all":
            raise InputError(
                f"GenericToSpecific: expected a mask with over={self.over!r}, got none."
            )
        wanted = layer_norm(y.detach(), y.shape[-1:])
        mapped = self.line(x)
        if mask is None or self.over == "all":
            return smooth_l1_loss(mapped, wanted)
        chosen = mask if self.over == "masked" else ~mask
        if not bool(chosen.any()):
            raise InputError(f"GenericToSpecific: expected {self.over} positions, got none.")
        return smooth_l1_loss(mapped[chosen], wanted[chosen])


def shared_mask(
    n_rows: int, n_positions: int, ratio: float = 0.75, draw: torch.Generator | None = None
) -> Bool[Tensor, "row pos"]:
    """Return a shared mask: True at an equal number of random positions in each row.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_positions : int
        Number of positions in a row.
    ratio : float, default=0.75
        Share of positions that are hidden, rounded.
    draw : torch.Generator, optional
        Source of the random positions; by default torch's own.
    """
    order = torch.rand(n_rows, n_positions, generator=draw).argsort(1).argsort(1)
    return order < round(ratio * n_positions)
