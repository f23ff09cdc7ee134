"""Attention that reads a few learned, fractional positions along a sequence of slices or frames."""

from typing import Any, ClassVar, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError
from sonde.layers._attending import wide_type
from sonde.layers.layer import Layer


@final
class DeformableAttention(Layer):
    """Read a few learned, fractional positions along a sequence of slices, for each slice.

    ``x_t + W sum_p a_hp v_h(t + d_hp)`` for the heads ``h`` side by side: the state ``x_t`` gives
    each head its offsets ``d_hp``, in slices, and a softmax over its points, ``a_hp``. ``v_h(s)``
    is interpolated linearly between the values of the two slices next to ``s``, and is zero at
    slices before the first, after the last and at hidden slices.

    In a new layer the offsets do not depend on the state: point ``p`` of a head lies ``p`` slices
    (1, 2, ...) behind the slice for even heads, and before it for odd heads; the weights are equal,
    and the last map is zero.

    Cost         row token heads points (dim / heads) interpolated numbers, instead of all pairs.
    Assumes      slices in order, at equal distances. If a slice has many tokens, pass the tokens at
                 one place of all slices as a row.
    Differs      from Deformable DETR: one axis and one level, and a residual connection. The
                 gradient of an offset at a whole number is the slope towards later slices.

    Parameters
    ----------
    dim : int
        Width of the states; a multiple of ``heads``.
    heads : int, default=4
        Number of heads.
    points : int, default=4
        Positions that each head reads.

    References
    ----------
    zhu2021deformable
    """

    paper: ClassVar[str] = "zhu2021deformable"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "heads": 2, "points": 3},
        {"dim": 4, "heads": 1, "points": 1},
    )
    layout: ClassVar[tuple[str, ...]] = ("row token dim",)
    symmetry = "translation"

    def __init__(self, dim: int, heads: int = 4, points: int = 4) -> None:
        super().__init__()
        if heads < 1 or points < 1 or dim % heads:
            raise InputError(
                "DeformableAttention: expected at least one head and one point, and a dim that "
                f"the heads divide, got {heads} heads, {points} points and dim={dim}."
            )
        self.dim, self.heads, self.points = dim, heads, points
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.offset, self.weight = (nn.Linear(dim, heads * points) for _ in range(2))
        side = 1.0 - 2.0 * (torch.arange(heads) % 2)
        with torch.no_grad():
            for p in (*self.offset.parameters(), *self.weight.parameters(), *self.out.parameters()):
                p.zero_()
            self.offset.bias.copy_((side[:, None] * torch.arange(1.0, points + 1)).flatten())

    def forward(
        self, x: Float[Tensor, "row token dim"], mask: Bool[Tensor, "row token"] | None = None
    ) -> Float[Tensor, "row token dim"]:
        """Return the states plus the values that each state reads.

        Parameters
        ----------
        x : Float[Tensor, "row token dim"]
            States of the slices in order.
        mask : Bool[Tensor, "row token"], optional
            True for real slices; the values of the other slices are zero.
        """
        values = rearrange(self.value(x), "row token (h w) -> row h token w", h=self.heads)
        if mask is not None:
            values = values.masked_fill(~mask[:, None, :, None], 0.0)
        read = _between(values.to(wide_type(x)), self.positions(x))
        gathered = (self.weights(x).unsqueeze(-1) * read).sum(3).to(x.dtype)
        return x + self.out(rearrange(gathered, "row h token w -> row token (h w)"))

    def positions(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row h token point"]:
        """Return the positions that each head reads, counted in slices from the first slice."""
        offsets = self._of_points(self.offset, x)
        return offsets + torch.arange(x.shape[1], device=x.device).to(offsets)[:, None]

    def weights(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row h token point"]:
        """Return the weight of each position; weights of a head sum to 1."""
        return self._of_points(self.weight, x).softmax(-1)

    def _of_points(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Return a map's numbers for heads and points in float32 or wider: positions need it."""
        wide = wide_type(x)
        with without_autocast(x.device):
            mapped = linear(x.to(wide), layer.weight.to(wide), layer.bias.to(wide))
        return rearrange(mapped, "row token (h point) -> row h token point", h=self.heads)


def _between(
    values: Float[Tensor, "row head token width"], position: Float[Tensor, "row head token point"]
) -> Float[Tensor, "row head token point width"]:
    """Return values at fractional positions, by linear interpolation; zero outside."""
    n = values.shape[2]
    padded = pad(values, (0, 0, 1, 2))  # at -1 and at n and n + 1, where all is zero
    position = position.clamp(-1, n)
    lower = position.floor()
    share = (position - lower).unsqueeze(-1)
    first = (lower.long() + 1).flatten(2)[..., None].expand(-1, -1, -1, values.shape[3])
    left, right = (
        padded.gather(2, at).unflatten(2, position.shape[2:]) for at in (first, first + 1)
    )
    return left + share * (right - left)
