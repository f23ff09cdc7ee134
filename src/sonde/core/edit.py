"""Edits of activations: the base class and the primitives that families share.

An edit is a frozen dataclass; ``sonde.editing(model, edit, sites)`` opens it on a live model.
Strength 0 returns the very tensor that came in.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.site import Site


@dataclass(frozen=True)
class EditContext:
    """What an edit knows beside the activation.

    Parameters
    ----------
    mask : Bool[Tensor, "example pos"] or None
        Real tokens; None where nothing is padded or nothing is known.
    position : Int[Tensor, "example pos"] or None
        Position of each token in its document.
    step : int
        How many times the site has run since the edit was opened.
    """

    mask: Bool[Tensor, "example pos"] | None = None
    position: Int[Tensor, "example pos"] | None = None
    step: int = 0


class Edit(ABC):
    """A change of the activations at a site. Subclasses are final frozen dataclasses."""

    @abstractmethod
    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return the changed activation: same shape and type, ``x`` itself at strength 0."""


@final
@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Add ``strength`` times a direction.

    Parameters
    ----------
    direction : Float[Tensor, "dim"]
    strength : float, default=1.0
    """

    direction: Float[Tensor, "dim"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x + strength direction``."""
        if self.strength == 0.0:
            return x
        return x + self.strength * self.direction.to(x)


@final
@dataclass(frozen=True, eq=False)
class Project(Edit):
    """Remove ``strength`` times the component along a direction.

    Parameters
    ----------
    direction : Float[Tensor, "dim"]
        Need not have unit length.
    strength : float, default=1.0
        1 removes the component, 2 reflects it.
    """

    direction: Float[Tensor, "dim"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x - strength (x . d) d`` with d of unit length."""
        if self.strength == 0.0:
            return x
        direction = self.direction.double()
        length = cast(Tensor, direction.norm())  # pyright: ignore[reportUnknownMemberType]
        unit = (direction / length).to(x)
        return x - self.strength * (x @ unit).unsqueeze(-1) * unit


@final
@dataclass(frozen=True)
class Scale(Edit):
    """Multiply by ``1 + strength (factor - 1)``.

    Parameters
    ----------
    factor : float
    strength : float, default=1.0
    """

    factor: float
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the scaled activation."""
        if self.strength == 0.0:
            return x
        return x * (1.0 + self.strength * (self.factor - 1.0))


@final
@dataclass(frozen=True)
class Clamp(Edit):
    """Clip every entry to ``[low, high]``, mixed in with weight ``strength``.

    Parameters
    ----------
    low, high : float or None
    strength : float, default=1.0
    """

    low: float | None = None
    high: float | None = None
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the clipped activation."""
        if self.strength == 0.0:
            return x
        clipped = x.clamp(self.low, self.high)
        return clipped if self.strength == 1.0 else torch.lerp(x, clipped, self.strength)


@final
@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """Put given values in place of the activation, mixed in with weight ``strength``.

    Parameters
    ----------
    values : Float[Tensor, "*axes dim"]
        Broadcast to the activation.
    strength : float, default=1.0
    """

    values: Float[Tensor, "*axes dim"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``values``, or the mixture."""
        if self.strength == 0.0:
            return x
        new = self.values.to(x).expand_as(x)
        return new.clone() if self.strength == 1.0 else torch.lerp(x, new, self.strength)
