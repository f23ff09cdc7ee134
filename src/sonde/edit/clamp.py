"""Edits of single units and features: set them to a value, scale them, or use their mean."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext, check_direction, check_width
from sonde.core.errors import InputError, ShapeError
from sonde.core.site import Site


@final
@dataclass(frozen=True)
class ClampUnit(Edit):
    """Set some units to a value, without changing the others.

    Range        the shape and type of the activation.
    Cost         a copy of the activation.
    Assumes      nothing.

    Parameters
    ----------
    unit : int or tuple of int
        Coordinates of the last axis, from 0.
    value : float
        Value of the units.
    strength : float, default=1.0
        Weight of the value.

    Examples
    --------
    >>> import sonde
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    >>> with sonde.editing(net, ClampUnit(1, 5.0), "0"):
    ...     net(torch.zeros(1, 3)).tolist()
    [[0.0, 5.0, 0.0]]
    """

    unit: int | tuple[int, ...]
    value: float
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the activation with the units moved to the value."""
        if self.strength == 0.0:
            return x
        units, new = _units(self, self.unit, x, site), x.clone()
        new[..., units] = new[..., units] * (1 - self.strength) + self.strength * self.value
        return new


@final
@dataclass(frozen=True)
class ScaleUnit(Edit):
    """Multiply some units by ``1 + strength (factor - 1)``, without changing the others.

    Range        the shape and type of the activation.
    Cost         a copy of the activation.
    Assumes      nothing.

    Parameters
    ----------
    unit : int or tuple of int
        Coordinates of the last axis, from 0.
    factor : float
        0 removes the units.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.
    """

    unit: int | tuple[int, ...]
    factor: float
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the activation with the units multiplied."""
        if self.strength == 0.0:
            return x
        units, new = _units(self, self.unit, x, site), x.clone()
        new[..., units] *= 1.0 + self.strength * (self.factor - 1.0)
        return new


@final
@dataclass(frozen=True, eq=False)
class ClampFeature(Edit):
    """Set one dictionary feature to a value: ``x + (value - z) d``.

    Only the part along ``d`` changes, so what the dictionary does not explain of the activation
    stays. The feature is read as ``z = max(0, reader . x + bias)``. With an orthonormal dictionary
    a second reading gives ``value``, and the other features stay.

    Range        the shape and type of the activation.
    Cost         one product of a row with a vector.
    Assumes      a dictionary that was fitted at this site.

    Parameters
    ----------
    direction : Float[Tensor, "dim"]
        The feature's row of the decoder, ``d``.
    value : float
        In the unit of the feature's activation.
    reader : Float[Tensor, "dim"], optional
        The feature's column of the encoder; by default ``d / |d|^2``.
    bias : float, default=0.0
        Bias of the feature's encoder.
    rectified : bool, default=True
        Whether the encoder cuts off below 0.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.

    Examples
    --------
    >>> import sonde
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    >>> with sonde.editing(net, ClampFeature(torch.tensor([0.6, 0.8]), 5.0), "0"):
    ...     net(torch.tensor([[0.6, 0.8]])).tolist()
    [[3.0, 4.0]]
    """

    direction: Float[Tensor, "dim"]
    value: float
    reader: Float[Tensor, "dim"] | None = None
    bias: float = 0.0
    rectified: bool = True
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_direction("ClampFeature", self.direction)
        if self.reader is not None:
            check_direction("ClampFeature", self.reader)
            if self.reader.shape != self.direction.shape:
                raise ShapeError(
                    f"ClampFeature: expected a reader as wide as the direction, "
                    f"{len(self.direction)}, got {len(self.reader)}."
                )

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x + strength (value - z) d``."""
        if self.strength == 0.0:
            return x
        check_width("ClampFeature", self.direction, x, site)
        direction = self.direction.double()
        reader = direction / direction.square().sum() if self.reader is None else self.reader
        z = x @ reader.to(x) + self.bias
        z = z.clamp(min=0) if self.rectified else z
        return x + self.strength * (self.value - z).unsqueeze(-1) * self.direction.to(x)


@final
@dataclass(frozen=True, eq=False)
class MeanAblate(Edit):
    """Replace some units, or all units, by the mean of fitted rows.

    It does less harm than zeros: later layers see a usual activation without information.

    Range        the shape and type of the activation.
    Cost         a copy of the activation; the mean takes one pass.
    Assumes      a mean of rows of this site.

    Parameters
    ----------
    mean : Float[Tensor, "dim"]
        Mean of fitted rows, such as the mean of ``sonde.stats.Moments``.
    unit : int or tuple of int, optional
        Coordinates of the last axis, from 0; by default all.
    strength : float, default=1.0
        Weight of the mean.

    Examples
    --------
    >>> import sonde
    >>> from sonde.stats import Moments
    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    >>> with sonde.editing(net, MeanAblate(Moments().observe(rows).mean, unit=1), "0"):
    ...     net(rows).tolist()
    [[1.0, 4.0], [3.0, 4.0]]
    """

    mean: Float[Tensor, "dim"]
    unit: int | tuple[int, ...] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or not bool(torch.isfinite(self.mean).all()):
            raise InputError(
                "MeanAblate: expected one finite number for each unit, got shape "
                f"{tuple(self.mean.shape)} with {int((~torch.isfinite(self.mean)).sum())} others."
            )

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the activation with the units moved to their mean."""
        if self.strength == 0.0:
            return x
        check_width("MeanAblate", self.mean, x, site)
        mean, new = self.mean.to(x), x.clone()
        units = slice(None) if self.unit is None else _units(self, self.unit, x, site)
        new[..., units] = torch.lerp(new[..., units], mean[units], self.strength)
        return new


def _units(edit: Edit, unit: int | tuple[int, ...], x: Tensor, site: Site) -> list[int]:
    units = [unit] if isinstance(unit, int) else list(unit)
    if not units or min(units) < 0 or max(units) >= x.shape[-1]:
        raise ShapeError(
            f"{type(edit).__name__}.apply: expected units from 0 to {x.shape[-1] - 1}, got "
            f"{units} at {site}."
        )
    return units
