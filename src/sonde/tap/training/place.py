"""One site that losses read or change, and its rows in a forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.site import WEIGHT, Reducer, Site
from sonde.tap.rows.frame import Frame, unnamed
from sonde.tap.training.ordinary_tokens import GivenInputs


@runtime_checkable
class Changing(Protocol):
    """Interface of modules that change a site's states during training.

    Attributes
    ----------
    has_loss : bool
        Whether it is a loss too, of rows read at its other sites and of columns. With an attribute
        ``reads_changed`` that is True it takes the rows of the changed site too, as they were. With
        ``in_forward`` False it changes nothing, and is a loss alone.
    """

    has_loss: bool

    def change(self, x: Tensor) -> Tensor:
        """Return changed states, examples first and units last.

        With an argument ``real`` it is told which positions (example, pos) are no padding.
        """
        ...


@dataclass(eq=False)
class Place:
    """A site, and its rows from the forward passes since the last loss.

    Attributes
    ----------
    views : list of Tensor
        For each forward its rows; of ``probs`` the maps (example, head, query, key).
    masks : list of Tensor
        Of ``probs``, which keys each query may see; none for queries that are padding.
    change : Changing or None
    is_before : bool
        Whether it is read before anything changes the site.
    """

    name: str
    site: Site
    module: nn.Module
    root: nn.Module
    reducer: Reducer | None
    is_teachers: bool = False
    change: Changing | None = None
    is_before: bool = False
    views: list[Tensor] = field(default_factory=list[Tensor])
    masks: list[Tensor | None] = field(default_factory=list[Tensor | None])

    @property
    def is_map(self) -> bool:
        """True if it holds attention maps: probabilities, not a statistic of each head."""
        return self.site.port == "probs" and (self.site.key or "0").isdigit()

    @property
    def is_mean(self) -> bool:
        """True if it holds a mean over tokens or positions, along unnamed axes."""
        how = self.reducer
        return self.change is None and how is not None and how.name == "mean" and how.axis is None

    @property
    def is_whole(self) -> bool:
        """True if it holds unreduced states or maps, not rows of one width."""
        return self.site.port != WEIGHT and (self.is_map or self.reducer is None)

    @property
    def brought(self) -> list[Tensor]:
        """Tensors from the forward passes, or the parameter that the place names."""
        if self.site.port != WEIGHT:
            return self.views
        return [self.module.get_parameter(self.site.key or WEIGHT)]


@dataclass(eq=False)
class TrainedForward:
    """A forward pass that runs, or that is finished and waits for its loss.

    Parameters
    ----------
    given : GivenInputs
    masks : dict of str to Tensor or None
        Real tokens, by the name of their axis.
    decodes : bool
        Whether it runs a decoder beside an encoder.
    named : mapping of str to object
        Its arguments.

    Attributes
    ----------
    has_inner : bool
        Whether the model called itself in it.
    brought : dict of Place to list of (Tensor, Tensor or None)
        Rows and masks, one for each call.
    frames : dict
        The examples, by the shape and device of the states.
    """

    given: GivenInputs
    masks: dict[str, Tensor | None]
    decodes: bool
    named: Mapping[str, Any]
    has_inner: bool = False
    brought: dict[Place, list[tuple[Tensor, Tensor | None]]] = field(
        default_factory=dict[Place, list[tuple[Tensor, Tensor | None]]]
    )
    frames: dict[tuple[Any, ...], Frame] = field(default_factory=dict[tuple[Any, ...], Frame])

    def frame(self, x: Tensor) -> Frame:
        """Return the examples, cached for all states of one length and device."""
        key = x.shape[0], 0 if x.is_nested or x.ndim < 2 else x.shape[1], x.device
        if key not in self.frames:
            batch = replace(unnamed(x.shape[0]), special=self.given.special_of(x))
            self.frames[key] = Frame(batch, x.device)
            self.frames[key].masks |= self.masks
        return self.frames[key]

    def has_target(self, place: Place, *, of_encoder: bool) -> bool:
        """Return whether the positions of a place are those of a decoder's own text."""
        return self.decodes and not (of_encoder or "encoder" in place.site.path.split("."))

    def real(self, place: Place, x: Tensor) -> Tensor | None:
        """Return the mask of non-padding positions, if the forward pass received a mask."""
        real = self.masks["pos2" if self.has_target(place, of_encoder=False) else "pos"]
        if real is None or x.is_nested or x.ndim < 3 or x.shape[:2] != real.shape:
            return None
        return real.to(x.device)

    def keep(self, place: Place, x: Tensor | None, mask: Tensor | None) -> None:
        """Store the rows of one call of a place."""
        if x is None:
            raise SiteError(f"training: {place.name} returned no floating-point tensor.")
        own = self.brought.setdefault(place, [])
        if place.site.call is None and own:
            raise SiteError(
                f"training: {place.site.path} is called more than once in one forward pass. "
                f"Write {place.site.path}@0, @1, ..."
            )
        own.append((x, mask))

    def give(self, place: Place) -> bool:
        """Add the chosen call of a place to its views; return False if it did not run."""
        call, own = place.site.call, self.brought.get(place, ())
        if not own or (isinstance(call, int) and call >= len(own)):
            return False
        x, mask = own[call if isinstance(call, int) else -1]
        place.views.append(x)
        place.masks.append(mask)
        return True
