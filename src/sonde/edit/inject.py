"""Replace the mean, standard deviation or states of this run by those of another run."""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.ranges import check_ranges
from sonde.core.site import Site

EPS = 1e-5


@final
@dataclass(frozen=True)
class Inject(Edit):
    """Move the states of each example towards the example's states in another run.

    ``adain_mean`` gives the tokens (or places) of an example the mean that the source has, unit by
    unit, and leaves their deviations from it; ``adain`` gives them the source's standard deviation
    too; ``add`` adds the source's mean (``level="global"``) or the state at the same place
    (``level="local"``).

    Cost         a mean over tokens; the other run.
    Assumes      ``EditContext.others`` holds the source, an example for each example, without
                 padding; its length is free unless ``level="local"``. Generated tokens come one by
                 one and have no mean: ``where="prompt"``.
    Differs      from the paper: the source is any run that is aligned by example.

    Parameters
    ----------
    merge : {"adain_mean", "adain", "add"}, default="adain_mean"
        What is taken from the source: its mean (``adain_mean``), its mean and deviation
        (``adain``), or its states, which are added (``add``).
    level : {"global", "local"}, default="global"
        For ``add``: one vector for all places, or a vector for each place.
    source : str, default="source"
        The name of the other run.
    strength : float, default=1.0
        Weight of the other run's states, in [0, 1]; 0 changes nothing.

    Examples
    --------
    >>> x, other = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[9.0], [11.0]]])
    >>> Inject().apply(x, Site("0"), EditContext(others={"source": other})).flatten().tolist()
    [9.0, 11.0]

    References
    ----------
    wu2024infiniteid, kong2024anymaker
    """

    merge: Literal["adain_mean", "adain", "add"] = "adain_mean"
    level: Literal["global", "local"] = "global"
    source: str = "source"
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, merge=("adain_mean", "adain", "add"), level=("global", "local"))
        if self.level == "local" and self.merge != "add":
            raise InputError(
                f"Inject: {self.merge} averages over positions, so its level is global. Use "
                "merge='add' to add states position by position."
            )

    @property
    def others_per(self) -> Literal["token", "example"]:
        """A state for each position with ``level="local"``, else examples of any length."""
        return "token" if self.level == "local" else "example"

    def apply(
        self, x: Float[Tensor, "example *places dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "example *places dim"]:
        """Return the states after the replacement."""
        if self.strength == 0.0:
            return x
        source = self._source(x, site, context)
        if self.level == "local":
            return x + self.strength * source
        mean, spread = _moments(x, context.mask)
        source_mean, source_spread = _moments(source, None)
        if self.merge == "add":
            return x + self.strength * source_mean
        if self.merge == "adain_mean":
            return x + self.strength * (source_mean - mean)
        new = (x - mean) / (spread + EPS) * source_spread + source_mean
        return torch.lerp(x, new, self.strength)

    def _source(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        if self.source not in context.others:
            raise InputError(
                f"Inject: expected states of the run {self.source!r} at {site}, got "
                f"{sorted(context.others) or 'none'}. Give them to sonde.editing(others=...)."
            )
        source = context.others[self.source].to(x)
        same = source.shape == x.shape
        fits = source.shape[0] == x.shape[0] and source.shape[-1] == x.shape[-1]
        if not (same if self.level == "local" else fits):
            raise ShapeError(
                f"Inject: expected a source like {tuple(x.shape)}, got {tuple(source.shape)} at "
                f"{site}. The runs are aligned by example."
            )
        return source


def _moments(x: Float[Tensor, "example *places dim"], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation over each example's real positions."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    weight = torch.ones(flat.shape[:2], dtype=x.dtype, device=x.device)
    if mask is not None and mask.shape == flat.shape[:2]:
        weight = mask.to(weight)
    weight = (weight / weight.sum(1, keepdim=True).clamp(min=1.0)).unsqueeze(-1)
    mean = (weight * flat).sum(1)
    spread = (weight * (flat - mean[:, None]).square()).sum(1).sqrt()
    shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    return mean.reshape(shape), spread.reshape(shape)


def increment_penalty(
    with_it: Float[Tensor, "example dim h w"],
    without: Float[Tensor, "example dim h w"],
    inside: Float[Tensor, "example height width"],
) -> Float[Tensor, ""]:
    """Return the fraction of a model's changes that lies outside a region; 0 without changes.

    ``|(1 - M) (h_with - h_without)|^2 / sum(1 - M)`` with the mask ``M`` averaged over the places
    of the map. A differentiable function of the maps, so that it serves as a loss of an adapter.

    Parameters
    ----------
    with_it, without : Float[Tensor, "example dim h w"]
        Maps of the changed and of the old model.
    inside : Float[Tensor, "example height width"]
        1 in the region where the change may act, 0 elsewhere, at any size.

    Examples
    --------
    >>> before, inside = torch.zeros(1, 1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    >>> after = torch.tensor([[[[5.0, 3.0], [0.0, 0.0]]]])
    >>> float(increment_penalty(after, before, inside))
    3.0

    References
    ----------
    yu2024facechainfact
    """
    if with_it.shape != without.shape or with_it.ndim != 4 or len(inside) != len(with_it):
        raise ShapeError(
            "increment_penalty: expected two maps of one shape (example, dim, h, w) and a mask "
            f"for each example, got {tuple(with_it.shape)}, {tuple(without.shape)} and "
            f"{tuple(inside.shape)}."
        )
    outside = 1.0 - adaptive_avg_pool2d(
        inside[:, None].to(with_it), (with_it.shape[2], with_it.shape[3])
    )
    if math.isclose(float(outside.sum()), 0.0):
        raise InputError("increment_penalty: the mask covers everything, so nothing is outside.")
    return (outside * (with_it - without)).square().sum() / outside.sum()
