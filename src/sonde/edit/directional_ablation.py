"""Remove directions from every state of a model, so that it cannot use them.

To remove what can be read off the states, whatever the model does with it, use an eraser; to make
a behaviour stronger or weaker, ``SteeringVector``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Add, AffineMap, Edit, EditContext, versions
from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.core.statistic import Statistic
from sonde.edit._directions import Direction, require_direction
from sonde.stats import ClassMoments, ClassMomentsState, TwoGroups
from sonde.stats.scatter import AnyScatter, is_frugal

DEPENDENT = 1e-6


@final
@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Remove the components along several directions, times ``strength``.

    The directions are made orthonormal first: if they are not at right angles, removal one after
    another leaves a part of the first. With a ``centre`` the components become those of the centre
    instead of 0.

    Parameters
    ----------
    directions : Float[Tensor, "dim n"]
        Columns; they need not have unit length.
    centre : Float[Tensor, "dim"] or None, default=None
        Point that rows are measured from; the origin by default.
    strength : float, default=1.0
        1 removes the components, 2 reflects them.

    Raises
    ------
    InputError
        If a direction is zero, not finite, or lies in the span of the others.

    Examples
    --------
    >>> edit = Ablate(torch.tensor([[1.0], [1.0]]))
    >>> x = torch.tensor([[3.0, 1.0]])
    >>> edit.apply(x, Site("0"), EditContext()).round(decimals=4).tolist()
    [[1.0, -1.0]]
    """

    directions: Float[Tensor, "dim n"]
    centre: Float[Tensor, "dim"] | None = None
    strength: float = 1.0
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"directions": torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]])},
        {"directions": torch.ones(4, 1), "centre": torch.arange(4.0), "strength": 0.5},
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", dict[Any, AffineMap]())
        self.as_affine()

    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return ``x - strength Q Q^T (x - centre)``."""
        if self.strength == 0.0:
            return x
        if x.shape[-1] != len(self.directions):
            raise ShapeError(
                f"Ablate.apply: expected dim={len(self.directions)}, that of its directions, got "
                f"dim={x.shape[-1]} at {site}. Fit a direction for that site."
            )
        return self.as_affine()(x)

    def as_affine(self) -> AffineMap:
        """Return the projection, recomputed if directions are trained or were changed in place."""
        version = versions(self.directions, self.centre)
        kept: dict[Any, AffineMap] = self.__dict__["_kept"]
        if version is None or version not in kept:
            kept.clear()
            kept[version] = self._made()
        return kept[version]

    def _made(self) -> AffineMap:
        basis, shift = _orthonormal(self.directions), None
        if self.centre is not None:
            shift = self.strength * (basis @ (basis.T @ self.centre.to(basis)))
        return AffineMap(shift=shift, left=-self.strength * basis, right=basis)


def _orthonormal(directions: Float[Tensor, "dim n"]) -> Float[Tensor, "dim n"]:
    """Return orthonormal columns with an equal span."""
    for column in directions.T:
        require_direction("Ablate", column)
    wide = directions.double()
    q, r = torch.linalg.qr(wide / wide.norm(dim=0))
    if bool((r.diagonal().abs() < DEPENDENT).any()):
        raise InputError(
            f"Ablate: expected linearly independent directions, got {directions.shape[1]} "
            "dependent ones. Leave out linearly dependent directions."
        )
    return q


@final
@dataclass(frozen=True, kw_only=True)
class AblationDirection(Result):
    """Direction from the mean state of one class to the mean state of another.

    ``vector`` has unit length, ``centre`` is the mean of the rows without the behaviour, ``length``
    how far the means lie apart; ``value`` is this distance in spreads of all rows along the
    direction.
    """

    title: ClassVar[str] = "Distance of the means"
    vector: Float[Tensor, "dim"]
    centre: Float[Tensor, "dim"]
    spread: float
    length: float

    def edit(
        self,
        strength: float = 1.0,
        *,
        affine: bool = False,
        others: Sequence["AblationDirection"] = (),
    ) -> Ablate:
        """Return the edit that removes the direction.

        Parameters
        ----------
        strength : float, default=1.0
        affine : bool, default=False
            Move the component to that of ``centre`` instead of 0, which does less damage where the
            component of usual rows is not 0. For the site of the fit only.
        others : sequence of AblationDirection, optional
            Directions that are taken out together with this one.
        """
        every = torch.stack([d.vector for d in (self, *others)], 1)
        return Ablate(every, self.centre if affine else None, strength)

    def induce(self, strength: float = 1.0) -> Add:
        """Return the edit that adds the difference of the means, and so induces the behaviour."""
        require_direction("AblationDirection.induce", self.vector * self.length)
        return Add(self.vector * self.length, strength)


@final
@dataclass(frozen=True)
class DirectionalAblation(Instrument):
    """Direction between the mean states with and without a behaviour, for removal at all sites.

    Read the rows at the last token of prompts that call the behaviour forth (class ``positive``)
    and of prompts that do not. Many sites give many candidates; ``choose_ablation`` tries them. The
    edit of the chosen direction belongs at every site that writes to the same states.

    Range        [0, inf), spreads of all rows along the direction; higher = further apart.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^2).
    Assumes      labels; all classes but ``positive`` are one side.
    Differs      from the paper: any reducer, any two classes; directions of several concepts are
                 made orthonormal and taken out together.

    Parameters
    ----------
    positive : int, default=1
        The class that shows the behaviour.
    scatter : {"auto", "full", "diag"}, default="auto"
        The whole covariance, or variances alone: then the spread takes no account of covariances.
        "auto": whole up to 2,048 dimensions, above that variances.

    Examples
    --------
    >>> x = [[0.0, 1.0], [2.0, 1.0], [0.0, 5.0], [2.0, 5.0]]
    >>> found = DirectionalAblation().fit(x, [0, 0, 1, 1])
    >>> found.edit(affine=True).apply(torch.tensor([[7.0, 7.0]]), Site("0"), EditContext()).tolist()
    [[7.0, 1.0]]

    References
    ----------
    arditi2024refusal
    """

    positive: int = 1
    scatter: AnyScatter = "auto"
    paper: ClassVar[str] = "arditi2024refusal"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"positive": 0, "scatter": "diag"})

    def __post_init__(self) -> None:
        check_ranges(self, scatter=get_args(AnyScatter))

    def at_width(self, dim: int) -> "DirectionalAblation":
        """Return the method with only variances if rows are too wide for a full covariance."""
        return replace(self, scatter="diag") if is_frugal(self.scatter, dim) else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class."""
        return {"by_class": ClassMoments("diag" if self.scatter == "diag" else "pooled")}

    def result(self, by_class: ClassMomentsState) -> AblationDirection:
        """Compute the difference of the means."""
        groups = TwoGroups.of("DirectionalAblation", by_class, self.positive)
        axis = Direction.along(groups.gap, groups.gap, by_class.total.covariance.detach())
        return AblationDirection(
            value=axis.gap / axis.spread if axis.spread > 0 else float("nan"),
            n=groups.n_rows,
            unit="standard deviations of all rows along the direction",
            direction="higher",
            range=(0.0, float("inf")),
            flags=groups.flags if axis.spread > 0 else (*groups.flags, "dead"),
            conventions={
                "value": "distance of both means",
                "positive": self.positive,
                "divisor": "n",
                "se": "a direction has no standard error: evaluate the edit's effect",
            },
            vector=axis.unit,
            centre=groups.mean[0],
            spread=axis.spread,
            length=axis.gap,
        )
