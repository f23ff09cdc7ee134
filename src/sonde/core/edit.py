"""Edits of activations: the base class and basic edits that other methods use.

An edit is a frozen dataclass; ``sonde.editing(model, edit, sites)`` opens it on a live model.
Strength 0 returns the very tensor that came in.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.keywords import InitSignature, checked_new
from sonde.core.site import Site


@dataclass(frozen=True)
class EditContext:
    """Information that an edit receives with the activation.

    Parameters
    ----------
    mask : Bool[Tensor, "example pos"] or None
        Real tokens; None if nothing is padded or the padding is unknown.
    position : Int[Tensor, "example pos"] or None
        Position of each token in its document.
    tokens : Int[Tensor, "example pos"] or None
        Ids of the tokens.
    generated : Bool[Tensor, "example pos"] or None
        Tokens that the model made itself; the others are the prompt.
    row : Int[Tensor, "example"] or None
        For each example, the index of the example that it continues in the first call on these
        texts.
    n_rows : int or None
        Number of examples in the first call: a multiple of the user's examples if ``generate``
        repeats prompts, as for beams.
    step : int
        Generation step: 0 while the prompt is read, then 1, 2, ... for each call on the same cache.
    call : int
        How many times the site has run since the edit was opened.
    others : mapping of str to Float[Tensor, "example *axes dim"]
        States of other runs at this site (``clean``, ``source``), an example for each example of
        this run; a state for each token unless the edit's ``others_per`` says otherwise.
    """

    mask: Bool[Tensor, "example pos"] | None = None
    position: Int[Tensor, "example pos"] | None = None
    tokens: Int[Tensor, "example pos"] | None = None
    generated: Bool[Tensor, "example pos"] | None = None
    row: Int[Tensor, "example"] | None = None
    n_rows: int | None = None
    step: int = 0
    call: int = 0
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def of_examples(
        self, values: Shaped[Tensor, "prompt *axes"]
    ) -> Shaped[Tensor, "example *axes"]:
        """Return the entry of ``values`` for each example of this call.

        Generation may repeat, reorder or drop prompts, so a call can hold other examples than the
        first one did.

        Parameters
        ----------
        values : Tensor
            An entry for each example of the user's batch.

        Raises
        ------
        InputError
            If the number of examples in the first call is no multiple of the number of entries.
        """
        if self.row is None or self.n_rows is None:
            return values
        repeats, rest = divmod(self.n_rows, max(len(values), 1))
        if rest or not repeats:
            raise InputError(
                f"expected an entry for each of the {self.n_rows} examples that the model was "
                f"called with (or one entry for several repeated examples), got {len(values)}."
            )
        return values[self.row.to(values.device) // repeats]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map ``x -> scale x + (x @ right) @ left.T + shift`` of rows.

    Parameters
    ----------
    shift : Float[Tensor, "dim"] or None
        Vector that is added to every row; none by default.
    left, right : Float[Tensor, "dim rank"] or None
        Factors of the part of low rank.
    scale : float, default=1.0
        Factor of every row.
    """

    shift: Float[Tensor, "dim"] | None = None
    left: Float[Tensor, "dim rank"] | None = None
    right: Float[Tensor, "dim rank"] | None = None
    scale: float = 1.0

    def __call__(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Return the mapped rows."""
        shift, left, right = self._like(x)
        if left is None or right is None:
            y = x if self.scale == 1.0 else self.scale * x
            return y if shift is None else y + shift
        rows = x.reshape(-1, x.shape[-1])
        far = rows @ right
        if shift is not None:  # as one more direction, so that x is read and written once
            far = torch.cat([far, far.new_ones(len(far), 1)], 1)
            left = torch.cat([left, shift[:, None]], 1)
        return torch.addmm(rows, far, left.T, beta=self.scale).reshape(x.shape)

    def _like(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the tensors in the dtype and on the device of ``x``, cached for later calls."""
        originals = (self.shift, self.left, self.right)
        version = versions(*originals)
        cache, key = self.__dict__.setdefault("_known", {}), (x.dtype, x.device, version)
        copies = None if version is None else cache.get(key)
        if copies is None:  # several threads may get here at once
            shift, left, right = (None if part is None else part.to(x) for part in originals)
            copies = shift, left, right
            cache.clear()
            cache[key] = copies
        return copies


def versions(*parameters: Tensor | None) -> tuple[int, ...] | None:
    """Return version counters of tensors, or None if a tensor is trained.

    Values computed from the tensors may be cached while these numbers stay the same. Values from
    trained tensors belong to one graph and are computed anew in each forward.
    """
    given = [x for x in parameters if x is not None]
    if any(x.requires_grad for x in given):
        return None
    return tuple(0 if x.is_inference() else x._version for x in given)


class Edit(ABC):
    """A change of the activations at a site. Subclasses are final frozen dataclasses."""

    call_form: ClassVar[str] = "sonde.editing(model, {name}(...), sites)"
    __new__ = checked_new
    __signature__ = InitSignature()

    @abstractmethod
    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return the changed activation, with unchanged shape and dtype, or ``x`` at strength 0."""

    @property
    def others_per(self) -> Literal["token", "example"]:
        """Content of ``context.others``: a state for each token, or examples of any length."""
        return "token"

    def as_affine(self) -> AffineMap | None:
        """Return the edit as an affine map of each row, or None if the edit is not affine.

        An affine edit can be folded into the weights of a linear layer.
        """
        return None


@final
@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Add ``strength`` times a direction.

    Parameters
    ----------
    direction : Float[Tensor, "dim"]
        Vector that is added to every row.
    strength : float, default=1.0
        Factor of the direction; 0 changes nothing.
    """

    direction: Float[Tensor, "dim"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_direction("Add", self.direction)

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x + strength direction``."""
        if self.strength == 0.0:
            return x
        check_width("Add", self.direction, x, site)
        return x + self.strength * self.direction.to(x)

    def as_affine(self) -> AffineMap:
        """Return the addition as an affine map."""
        return AffineMap(shift=self.strength * self.direction)


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

    def __post_init__(self) -> None:
        check_direction("Project", self.direction)

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x - strength (x . d) d`` with d of unit length."""
        if self.strength == 0.0:
            return x
        check_width("Project", self.direction, x, site)
        unit = self._unit.to(x)
        return x - (x @ unit).unsqueeze(-1) * (self.strength * unit)

    def as_affine(self) -> AffineMap:
        """Return the projection as an affine map."""
        unit = self._unit.unsqueeze(1)
        return AffineMap(left=-self.strength * unit, right=unit)

    @property
    def _unit(self) -> Tensor:
        direction = self.direction.double()
        return direction / cast(Tensor, direction.norm())  # pyright: ignore[reportUnknownMemberType]


@final
@dataclass(frozen=True)
class Scale(Edit):
    """Multiply by ``1 + strength (factor - 1)``.

    Parameters
    ----------
    factor : float
        Factor at strength 1.
    strength : float, default=1.0
        Strength of the edit; 0 changes nothing.
    """

    factor: float
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the scaled activation."""
        if self.strength == 0.0:
            return x
        return self.as_affine()(x)

    def as_affine(self) -> AffineMap:
        """Return the scaling as an affine map."""
        return AffineMap(scale=1.0 + self.strength * (self.factor - 1.0))


@final
@dataclass(frozen=True)
class Clamp(Edit):
    """Clip every entry to ``[low, high]``, mixed in with weight ``strength``.

    Parameters
    ----------
    low : float or None
        Lower bound of every entry; none by default.
    high : float or None
        Upper bound of every entry; none by default.
    strength : float, default=1.0
        Weight of the clipped values, in [0, 1]; 0 changes nothing.
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
    """Replace the activation by given values, mixed in with weight ``strength``.

    Parameters
    ----------
    values : Float[Tensor, "*axes dim"]
        Broadcast to the activation.
    strength : float, default=1.0
        Weight of the new values, in [0, 1]; 0 changes nothing.
    """

    values: Float[Tensor, "*axes dim"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``values``, or the mixture with the activation."""
        if self.strength == 0.0:
            return x
        new = self.values.to(x).expand_as(x)
        return new.clone() if self.strength == 1.0 else torch.lerp(x, new, self.strength)


def check_direction(owner: str, direction: Tensor) -> None:
    """Raise if a tensor is not a direction.

    Raises
    ------
    InputError
        If the tensor is not a vector, has an entry that is not finite, or is zero.
    """
    if direction.ndim != 1:
        reason = f"shape {tuple(direction.shape)}"
    elif not bool(torch.isfinite(direction).all()):
        reason = f"{int((~torch.isfinite(direction)).sum())} entries that are not finite"
    elif not bool(direction.any()):
        reason = "zeros only"
    else:
        return
    raise InputError(
        f"{owner}: expected a direction, one finite vector that is not zero, got {reason}. Fit it "
        "on rows that differ."
    )


def check_width(owner: str, direction: Tensor, x: Tensor, site: Site) -> None:
    """Raise if activations do not have the expected width.

    Raises
    ------
    ShapeError
        With both widths and the site.
    """
    if x.shape[-1] != direction.shape[-1]:
        raise ShapeError(
            f"{owner}.apply: expected activations as wide as the direction, {direction.shape[-1]}, "
            f"got {x.shape[-1]} at {site}. Fit a direction for that site."
        )
