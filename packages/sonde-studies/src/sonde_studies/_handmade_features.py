"""Features of digits that are made by hand, and any function of rows as a model to read."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde import Model

Pixels = Float[Tensor, "digit 64"]


class _Called(nn.Module):
    made: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.made(x)


def as_model(made: Callable[[Tensor], Tensor]) -> Model:
    """Return a model without weights that calls a function of rows (row, dim)."""
    source = _Called().eval()
    source.made = made
    return Model(source)


def moments_and_ink(x: Pixels) -> Float[Tensor, "digit 22"]:
    """Return the ink of lines, of columns, its first two moments, its sum, and the inked pixels."""
    picture = x.reshape(-1, 8, 8)
    high, wide = picture.sum(2), picture.sum(1)
    ink, at = x.sum(1, keepdim=True).clamp(min=1e-6), torch.arange(8.0)
    centre = torch.stack([high @ at, wide @ at, high @ at**2, wide @ at**2], 1) / ink
    return torch.cat([high, wide, centre, ink, (x > 0).sum(1, keepdim=True)], 1)


def line_entropies(x: Pixels) -> Float[Tensor, "digit line"]:
    """Return the entropy of the ink of each line of an image, in nats."""
    share = x.reshape(-1, 8, 8) + 1e-6
    share = share / share.sum(2, keepdim=True)
    return -(share * share.log()).sum(2)
