"""Coefficients on the long skip connections of a U-shaped network, constant or learned."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer, LayerEdit


@final
class ScaledSkip(Layer):
    """Multiply the tensor of a long skip connection by a coefficient.

    ``power``: ``kappa^(index - 1)``; the outermost skip has index 1. ``root``: ``1 / sqrt 2``.
    ``learned``: ``2 sigmoid(MLP(mean over space))`` for each channel, which starts at 1. The sum of
    the squared powers bounds how far all skips together move the output.

    Cost         one product for each entry.
    Assumes      the site is the skip's own tensor, before it is joined.
    Differs      from ScaleLong: the learned coefficient has the factor 2, so that it starts at 1.

    Parameters
    ----------
    index : int, default=1
        Place of the skip connection, from 1 for the outermost.
    kappa : float, default=0.7
        The paper's authors suggest 0.5 to 0.95; 1 changes nothing.
    how : {"power", "root", "learned"}, default="power"
        How the coefficient is found: a power of ``kappa``, ``1 / sqrt 2``, or learned for each
        channel.
    dim : int, default=0
        Channels, for ``learned``.

    References
    ----------
    huang2023scalelong
    """

    paper: ClassVar[str] = "huang2023scalelong"
    variants: ClassVar[Mapping[str, str]] = {
        "kappa=0.7": "huang2023scalelong",
        "how='learned'": "huang2023scalelong",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"index": 3},
        {"kappa": 1.0},
        {"how": "root"},
        {"how": "learned", "dim": 4},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim *space",)

    def __init__(
        self,
        index: int = 1,
        kappa: float = 0.7,
        how: Literal["power", "root", "learned"] = "power",
        dim: int = 0,
    ) -> None:
        super().__init__()
        if index < 1 or kappa <= 0 or (how == "learned") != (dim > 0):
            raise InputError(
                f"ScaledSkip: expected an index from 1, kappa above 0, and a dim for 'learned' "
                f"only, got {index}, {kappa}, {how!r} and dim={dim}."
            )
        if dim:
            self.dim = dim
        self.index, self.kappa, self.how = index, kappa, how
        self.coefficient = {"power": kappa ** (index - 1), "root": 0.5**0.5, "learned": 1.0}[how]
        self.insertable = self.coefficient == 1.0
        self.net: nn.Sequential | None = None
        if how == "learned":
            last = nn.Linear(max(1, dim // 2), dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.net = nn.Sequential(nn.Linear(dim, max(1, dim // 2)), nn.ReLU(), last)

    def forward(self, x: Float[Tensor, "row dim *space"]) -> Float[Tensor, "row dim *space"]:
        """Return the scaled tensor."""
        if self.net is None:
            return x * self.coefficient
        pooled = x.flatten(2).mean(2) if x.ndim > 2 else x
        gate = 2.0 * torch.sigmoid(self.net(pooled))
        return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))

    def as_edit(self, strength: float = 1.0) -> LayerEdit:
        """Return an edit; strength 1 applies the coefficient, 0 returns the tensor unchanged.

        Parameters
        ----------
        strength : float, default=1.0
        """
        return LayerEdit(self, strength)
