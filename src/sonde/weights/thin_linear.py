"""A linear layer whose weight is the product of two thin matrices."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import ShapeError


class ThinLinear(nn.Module):
    """A linear layer that multiplies by ``right``, then by ``left``.

    Parameters
    ----------
    rank : int
        Rank of the product.
    in_features : int
        Number of inputs of the layer.
    out_features : int
        Number of outputs of the layer.
    bias : bool
        Whether the layer has a bias.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.left = nn.Parameter(torch.zeros(out_features, rank))
        self.right = nn.Parameter(torch.zeros(rank, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def extra_repr(self) -> str:
        """Return sizes and rank."""
        return (
            f"{self.in_features}, {self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )

    @property
    def weight(self) -> Tensor:
        """The product of both matrices, for code that reads it outside the layer."""
        return self.left @ self.right

    def forward(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x right^T left^T + bias``."""
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"ThinLinear: expected rows of {self.in_features} features, got {x.shape[-1]}."
            )
        return functional.linear(functional.linear(x, self.right), self.left, self.bias)
