"""Fuse the levels of a pyramid of maps: with both neighbours, from above, or with all levels.

For nets that draw masks or boxes at several sizes. All levels have one width.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sonde.core.errors import InputError, ShapeError
from sonde.layers._pyramid import resized
from sonde.layers.layer import Layer

MAPS = "row dim high wide"


@final
class LevelFusion(Layer):
    """Levels of a pyramid, fine to coarse, each plus a 1 x 1 map of what it met.

    ``both``: from fine to coarse, a level meets the mean of itself, the finer level as fused and
    the coarser level as it was. ``coarser``: from coarse to fine, the mean of itself and the
    coarser level as fused, as in a feature pyramid. ``dense``: every level meets all levels, twice:
    weighted by a softmax over levels for each channel, which the levels' means decide, and by one
    for each place, which the maps there decide. Levels take a level's size by maxima or by the
    nearest entry. With ``refine`` each place then attends to the places of all fused levels, in the
    coarsest level's size: ``x + softmax(q k^T / sqrt(dim)) v W_o``. The maps and ``W_o`` begin with
    weights of zero: an untrained layer adds a bias to each channel and mixes nothing.

    Cost         ``n_levels`` maps of ``dim^2``; ``dense`` ``2 dim n_levels^2`` numbers more,
                 ``refine`` ``4 dim^2`` and attention of all places to ``n_levels`` coarse maps.
    Assumes      levels of one width, fine to coarse.
    Differs      from RCNet: one map a level, without depthwise blocks; from SDANet: one softmax
                 over levels a channel and a place, without bottlenecks; dependencies are refined
                 by attention with one head, shared by the levels.

    Parameters
    ----------
    dim : int
        Width of all levels.
    n_levels : int, default=3
        Number of levels, at least 2.
    meets : {"both", "coarser", "dense"}, default="both"
        Levels that a level is fused with.
    refine : bool, default=False
        Refine each level by attention to all fused levels.

    Examples
    --------
    >>> levels = torch.ones(1, 2, 8, 8), torch.ones(1, 2, 4, 4)
    >>> [tuple(x.shape) for x in LevelFusion(2, 2)(*levels)]
    [(1, 2, 8, 8), (1, 2, 4, 4)]

    References
    ----------
    zong2021rcnet
    """

    paper: ClassVar[str] = "zong2021rcnet"
    variants: ClassVar[Mapping[str, str]] = {
        "meets='dense'": "wang2021pidray",
        "meets='dense', refine=True": "wang2021pidray",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 4, "n_levels": 2, "meets": "coarser"},
        {"dim": 4, "meets": "dense"},
        {"dim": 4, "meets": "dense", "refine": True},
    )
    insertable = False

    def __init__(
        self,
        dim: int,
        n_levels: int = 3,
        meets: Literal["both", "coarser", "dense"] = "both",
        refine: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or n_levels < 2:
            raise InputError(
                "LevelFusion: expected a dim of at least 1 and at least two levels, got "
                f"dim={dim} and n_levels={n_levels}."
            )
        self.dim, self.meets = dim, meets
        object.__setattr__(self, "layout", (MAPS,) * n_levels)
        self.maps = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in range(n_levels))
        for part in self.maps:
            nn.init.zeros_(part.get_parameter("weight"))
        if meets == "dense":
            shape = (n_levels, n_levels, dim)
            self.channel = nn.Parameter(0.1 * torch.randn(shape))
            self.place = nn.Parameter(0.1 * torch.randn(shape))
        self.heads = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(3 * refine))
        self.out = nn.Linear(dim, dim, bias=False) if refine else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)

    def forward(self, *levels: Float[Tensor, "row dim _ _"]) -> tuple[Tensor, ...]:
        """Return the levels after the fusion.

        Parameters
        ----------
        *levels : Float[Tensor, "row dim high wide"]
            Fine to coarse.
        """
        if len(levels) != len(self.maps):
            raise ShapeError(
                f"LevelFusion.forward: expected {len(self.maps)} levels ({MAPS}), got "
                f"{len(levels)}."
            )
        fused = self._fused(*levels)
        return fused if self.out is None else self.refined(*fused)

    def _fused(self, *levels: Tensor) -> tuple[Tensor, ...]:
        if self.meets == "dense":
            return tuple(
                x + part(met)
                for x, part, met in zip(levels, self.maps, self.met(*levels), strict=True)
            )
        fused, last, both = list(levels), len(levels) - 1, self.meets == "both"
        for i in range(last + 1) if both else reversed(range(last + 1)):
            size = (levels[i].shape[2], levels[i].shape[3])
            met = [fused[i]]
            met += [resized(fused[i + 1], size)] if i < last else []
            met += [resized(fused[i - 1], size)] if i and both else []
            fused[i] = fused[i] + self.maps[i](torch.stack(met).mean(0))
        return tuple(fused)

    def refined(self, *levels: Float[Tensor, "row dim _ _"]) -> tuple[Tensor, ...]:
        """Return the levels plus what each place attends to in all levels, with ``refine``."""
        assert self.out is not None
        size = (levels[-1].shape[2], levels[-1].shape[3])
        query, key, value = self.heads
        small = torch.cat([resized(x, size).flatten(2) for x in levels], 2).transpose(1, 2)
        keys, values = key(small), value(small)
        attended: list[Tensor] = []
        for x in levels:
            queries = query(x.flatten(2).transpose(1, 2))
            brought = self.out(scaled_dot_product_attention(queries, keys, values))
            attended.append(x + brought.transpose(1, 2).reshape(x.shape))
        return tuple(attended)

    def met(self, *levels: Float[Tensor, "row dim _ _"]) -> list[Tensor]:
        """Return, for each level of ``dense``, all levels by the weights of channels and places."""
        mixed: list[Tensor] = []
        for x, channel, place in zip(levels, self.channel, self.place, strict=True):
            every = torch.stack([resized(y, (x.shape[2], x.shape[3])) for y in levels], 1)
            by_channel = (every.mean((3, 4)) * channel).softmax(1)[..., None, None]
            score = torch.einsum("rldhw,ld->rlhw", every, place) / self.dim**0.5
            by_place = score.softmax(1).unsqueeze(2)
            mixed.append((every * (by_channel + by_place)).sum(1) / 2)
        return mixed
