"""A linear map that replaces removed blocks."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class LinearBlock(nn.Module):
    """Maps the states of each position by a matrix, and ignores other arguments of a block.

    Parameters
    ----------
    n_in : int
        Number of features of the incoming states.
    n_out : int
        Number of features of the outgoing states.
    first : bool
        Whether blocks of the model return a tuple whose first entry are the states.
    """

    def __init__(self, n_in: int, n_out: int, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(torch.zeros(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"

    def forward(self, x: Float[Tensor, "*batch in"], *_: Any, **others: Any) -> Any:
        """Return ``x W^T + bias``; arguments such as masks and caches are not used."""
        output = functional.linear(x, self.weight, self.bias)
        return (output,) if self.first else output
