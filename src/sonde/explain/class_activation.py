"""Maps of the image or text regions that support a class, from a layer that keeps positions.

``GradCam`` weighs channels by their mean gradient, ``HiResCam`` and ``LayerCam`` place by place,
``GradCamPP`` by positive gradients that count less in a very active channel. No map is scaled: a
map of zeros stays a map of zeros.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from sonde.core.errors import InputError
from sonde.explain.attribution import Attribution, Attributor, Parts
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import INPUT, SiteFunction


@dataclass(frozen=True)
class ClassActivation(Attributor):
    """A map over the positions of a layer. Subclasses define how channels are weighted.

    Parameters
    ----------
    relu : bool, default=True
        Keep only what speaks for the objective.
    special : tuple of int, default=()
        Places on the token axis that are no part of the picture (class token, registers).
    """

    relu: bool = True
    special: tuple[int, ...] = ()
    at_point: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"relu": False})

    @property
    def signed(self) -> bool:
        """True without ``relu``."""
        return not self.relu

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        if function.site == INPUT or function.value.ndim < 3:
            raise InputError(
                f"{type(self).__name__}: expected a layer whose output keeps spatial or token "
                "positions, of shape (row, channel, h, w) or (row, token, unit), got "
                f"{tuple(function.value.shape)} at {function.site}. Name one: site='layer4', "
                "or the last block."
            )
        _, gradient, reached = function.slope(objective.of)
        axis = function.feature_axis
        maps, slopes = (x.movedim(axis, -1) for x in (function.value, gradient))
        mask = function.mask
        real = torch.ones_like(maps[..., :1]) if mask is None else mask.to(maps).unsqueeze(-1)
        if self.special and maps.ndim == 3:
            kept = [i for i in range(maps.shape[1]) if i not in self._absolute(maps.shape[1])]
            maps, slopes, real = maps[:, kept], slopes[:, kept], real[:, kept]
        weighed = self._weighed(maps * real, slopes * real, real) * real[..., 0]
        return Parts(weighed.relu() if self.relu else weighed, is_reached=reached)

    def _absolute(self, n: int) -> set[int]:
        return {i % n for i in self.special}

    @abstractmethod
    def _weighed(
        self,
        maps: Float[Tensor, "row *place unit"],
        slopes: Float[Tensor, "row *place unit"],
        real: Float[Tensor, "row *place one"],
    ) -> Float[Tensor, "row *place"]:
        """Return the weighted sum over channels at each position; padding is 0 in all inputs.

        ``real`` is 1 at the other places.
        """


@final
@dataclass(frozen=True)
class GradCam(ClassActivation):
    """Channels weighted by their mean gradient over positions: ``relu(sum_k mean_u(g_k) A_k(u))``.

    Range        [0, inf) with ``relu``; units of the objective over places, never scaled.
    Cost         one forward and backward from the layer on.
    Assumes      a layer that keeps places, usually the last one.

    Parameters
    ----------
    relu : bool, default=True
        Set negative values of the map to 0.
    special : tuple of int, default=()
        Positions that belong to no place of the picture, such as the class token's.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten())
    >>> GradCam().explain(net, torch.ones(1, 1, 3, 3), site="0").value.shape
    torch.Size([1, 3, 3])

    References
    ----------
    selvaraju2017gradcam
    """

    paper: ClassVar[str] = "selvaraju2017gradcam"

    def _weighed(self, maps: Tensor, slopes: Tensor, real: Tensor) -> Tensor:
        places = tuple(range(1, maps.ndim - 1))
        n_real = real.sum(places, keepdim=True).clamp(min=1.0)
        return (slopes.sum(places, keepdim=True) / n_real * maps).sum(-1)


@final
@dataclass(frozen=True)
class HiResCam(ClassActivation):
    """Gradient times activation at each position, summed over channels.

    Range        objective; without ``relu`` the sum over places of a linear read-out is its logit
                 less the bias.
    Cost         one forward and backward from the layer on.
    Assumes      a layer that keeps places.

    Parameters
    ----------
    relu : bool, default=False
        Set negative values of the map to 0.
    special : tuple of int, default=()
        Positions that belong to no place of the picture, such as the class token's.

    References
    ----------
    draelos2020hirescam
    """

    relu: bool = False
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"relu": True})
    paper: ClassVar[str] = "draelos2020hirescam"

    def _weighed(self, maps: Tensor, slopes: Tensor, real: Tensor) -> Tensor:
        return (slopes * maps).sum(-1)


@final
@dataclass(frozen=True)
class LayerCam(ClassActivation):
    """Activations weighted by the positive gradients at each position.

    Range        [0, inf) with ``relu``.
    Cost         one forward and backward from the layer on.
    Assumes      a layer that keeps places; earlier ones too.

    Parameters
    ----------
    relu : bool, default=True
        Set negative values of the map to 0.
    special : tuple of int, default=()
        Positions that belong to no place of the picture, such as the class token's.

    References
    ----------
    jiang2021layercam
    """

    paper: ClassVar[str] = "jiang2021layercam"

    def _weighed(self, maps: Tensor, slopes: Tensor, real: Tensor) -> Tensor:
        return (slopes.relu() * maps).sum(-1)


@final
@dataclass(frozen=True)
class GradCamPP(ClassActivation):
    """Channels weighted by their positive gradients, with less weight for very active channels.

    ``w_k = sum_u alpha_k(u) relu(g_k(u))`` with ``alpha = g^2 / (2 g^2 + sum_v A_k(v) g^3)``, 0
    where the denominator is 0.

    Range        [0, inf) with ``relu``.
    Cost         one forward and backward from the layer on.
    Assumes      an objective of the form ``exp(logit)``; other objectives are an approximation.

    Parameters
    ----------
    relu : bool, default=True
        Set negative values of the map to 0.
    special : tuple of int, default=()
        Positions that belong to no place of the picture, such as the class token's.

    References
    ----------
    chattopadhay2018gradcampp
    """

    paper: ClassVar[str] = "chattopadhay2018gradcampp"

    def _weighed(self, maps: Tensor, slopes: Tensor, real: Tensor) -> Tensor:
        places = tuple(range(1, maps.ndim - 1))
        square = slopes.square()
        below = 2.0 * square + maps.sum(places, keepdim=True) * square * slopes
        alpha = torch.where(below != 0, square / torch.where(below != 0, below, 1.0), 0.0)
        weight = (alpha * slopes.relu()).sum(places, keepdim=True)
        return (weight * maps).sum(-1)


def upsampled(
    found: Attribution, size: tuple[int, int], grid: tuple[int, int] | None = None
) -> Float[Tensor, "row height width"]:
    """Return the map at the size of the image, interpolated bilinearly between position centres.

    Parameters
    ----------
    found : Attribution
        With a map (row, h, w), or (row, token) with ``grid``.
    size : (int, int)
        Height and width of the picture.
    grid : (int, int), optional
        Height and width in patches of a map over tokens.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten())
    >>> found = GradCam().explain(net, torch.ones(2, 1, 3, 3), site="0")
    >>> upsampled(found, (6, 6)).shape
    torch.Size([2, 6, 6])
    """
    value = torch.as_tensor(found.value)
    if value.ndim == 2 and grid is not None and value.shape[1] == grid[0] * grid[1]:
        value = value.unflatten(1, grid)
    if value.ndim != 3:
        raise InputError(
            f"upsampled: expected a map (row, h, w), or (row, token) with its grid, got "
            f"{tuple(value.shape)} and grid {grid}. Leave special tokens out (special=(0,))."
        )
    return interpolate(value[:, None], list(size), mode="bilinear", align_corners=False)[:, 0]
