"""Directions that a layer's inputs do not reach, along which its weights can change freely."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError, StateError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import Moments, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class NullSpaceResult(Result):
    """Orthonormal ``basis`` of the directions that protected inputs hardly reach.

    ``value`` is the number of directions, ``leak`` the share of the inputs' mean square in them.
    """

    title: ClassVar[str] = "Directions free of inputs"
    direction: Direction = "higher"
    basis: Float[Tensor, "dim free"]
    leak: float

    def project(self, keys: Float[Tensor, "dim key"]) -> Float[Tensor, "dim key"]:
        """Return the projection of vectors onto the free directions.

        Raises
        ------
        ShapeError
            If the vectors have another width.
        StateError
            If there is no free direction: nothing can change without protected outputs changing.
        """
        dim, free = self.basis.shape
        if len(keys) != dim:
            raise ShapeError(
                f"NullSpace.project: expected vectors of dim={dim}, got dim={len(keys)}. Fit it at "
                "the input of the layer that is changed."
            )
        if free == 0:
            raise StateError(
                f"NullSpace.project: protected inputs span all {dim} directions, so every "
                "change would affect their outputs. Fit it with a larger tolerance, or on "
                "fewer inputs."
            )
        basis = self.basis.to(keys)
        return basis @ (basis.T @ keys)

    def restrict(self, delta: Float[Tensor, "out dim"]) -> Float[Tensor, "out dim"]:
        """Return a weight update that does not change the outputs for protected inputs."""
        return self.project(delta.T).T


@final
@dataclass(frozen=True)
class NullSpace(Instrument):
    """Directions of a layer's input space that protected inputs hardly reach.

    Eigenvectors of the second moment of the inputs whose eigenvalue is at most ``tolerance`` times
    the mean eigenvalue. An update of the weights that is restricted to these directions changes
    protected outputs no more than the tolerance allows.

    Range        [0, dim], directions; higher = more room; 0 = no update is free.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      the rows are all that must be protected.

    Parameters
    ----------
    tolerance : float, default=0.01
        Largest eigenvalue of a free direction, in units of the mean eigenvalue.

    Examples
    --------
    >>> result = NullSpace().fit([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    >>> result.value, result.basis.abs().round().tolist()
    (1.0, [[0.0], [0.0], [1.0]])

    References
    ----------
    fang2025alphaedit
    """

    tolerance: float = 1e-2
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "fang2025alphaedit"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"tolerance": 0.5})

    def __post_init__(self) -> None:
        check_ranges(self, tolerance="> 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of all rows."""
        return {"moments": Moments()}

    def result(self, moments: MomentsState) -> NullSpaceResult:
        """Compute the eigenvectors of small eigenvalues."""
        values, vectors = torch.linalg.eigh(moments.second_moment.detach())
        free = values <= self.tolerance * values.mean()
        total = float(values.sum())
        return NullSpaceResult(
            value=float(free.sum()),
            n=moments.n,
            unit="directions",
            range=(0.0, float(len(values))),
            flags=(() if total > 0 else ("dead",))
            + (("few_rows",) if moments.n <= len(values) else ()),
            conventions={
                "tolerance": self.tolerance,
                "centered": False,
                "se": "not given for a count of directions",
            },
            basis=vectors[:, free],
            leak=float(values[free].clamp(min=0.0).sum()) / total if total > 0 else 0.0,
        )
