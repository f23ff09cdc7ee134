"""Second moment of a layer's inputs, as the cost of changing its weights.

Fit it at the input of the layer whose weights are changed (``layers.3.mlp.down_proj:in``), on plain
text of the kind that the model must go on to handle as before.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError, StateError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.stats import Moments, MomentsState

SMALLEST_PIVOT = 1e-6


@final
@dataclass(frozen=True, kw_only=True)
class SecondMomentResult(Result):
    """Mean of ``k k^T`` over the inputs ``k`` of a layer, plus the given ridge.

    ``value`` is the mean squared norm of an input.
    """

    title: ClassVar[str] = "Second moment of a layer's inputs"
    matrix: Float[Tensor, "dim dim"]
    ridge: float

    def solve(self, keys: Float[Tensor, "dim key"]) -> Float[Tensor, "dim key"]:
        """Return ``C^-1 keys``.

        Raises
        ------
        ShapeError
            If the keys are of another width.
        StateError
            If the second moment is singular: some directions have no inputs.
        """
        dim = len(self.matrix)
        if len(keys) != dim:
            raise ShapeError(
                f"SecondMoment.solve: expected keys of dim={dim}, got dim={len(keys)}. Fit it at "
                "the input of the layer that is changed."
            )
        root, info = torch.linalg.cholesky_ex(self.matrix)
        pivots = root.diagonal()
        broken = int(info) > 0 or float(pivots.min()) < SMALLEST_PIVOT * float(pivots.max())
        if broken or (self.n < dim and self.ridge == 0.0):
            raise StateError(
                f"SecondMoment.solve: the second moment of {self.n} inputs of dim={dim} is "
                "singular. Fit it on more tokens, or with SecondMoment(ridge=1e-3)."
            )
        return torch.cholesky_solve(keys.to(root), root)


@final
@dataclass(frozen=True)
class SecondMoment(Instrument):
    """Mean of ``k k^T`` over the rows of a site, not centred.

    Knowledge edits use it to measure how far they move the layer's outputs: an update ``D`` of the
    weights moves them by ``tr(D C D^T)`` in mean square.

    Range        [0, inf), mean squared norm of a row, squared units of the rows; higher =
                 longer rows.
    Cost         one pass; state 8 dim^2 bytes; a solve O(dim^3).
    Assumes      more rows than ``dim``, or a ridge.

    Parameters
    ----------
    ridge : float, default=0.0
        Multiple of the identity that is added, in units of the mean squared entry of a row.

    Examples
    --------
    >>> result = SecondMoment().fit([[1.0, 2.0], [3.0, 0.0]])
    >>> result.matrix.tolist(), result.value
    ([[5.0, 1.0], [1.0, 2.0]], 7.0)

    References
    ----------
    meng2022rome
    """

    ridge: float = 0.0
    paper: ClassVar[str] = "meng2022rome"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"ridge": 0.01})

    def __post_init__(self) -> None:
        check_ranges(self, ridge=">= 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of all rows."""
        return {"moments": Moments()}

    def result(self, moments: MomentsState) -> SecondMomentResult:
        """Add the mean to the covariance."""
        matrix = moments.second_moment.detach()
        mean_square = matrix.diagonal().mean()
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return SecondMomentResult(
            value=moments.second_moment.diagonal().sum(),
            n=moments.n,
            unit="squared units of the rows",
            range=(0.0, float("inf")),
            conventions={"centered": False, "divisor": "n", "ridge": self.ridge},
            matrix=matrix + self.ridge * mean_square * eye,
            ridge=self.ridge,
        )
