"""Coding rates from second moments: nats to code rows up to an error.

Measures and losses of the same name share these functions, so that they agree.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian_rate(second: Float[Tensor, "dim dim"], scale: float) -> Float[Tensor, ""]:
    """Return ``ln det(1 + scale second) / 2`` by Cholesky decomposition.

    Parameters
    ----------
    second : Float[Tensor, "dim dim"]
        Second moment of the rows.
    scale : float
        Factor of the second moment.
    """
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    return torch.linalg.cholesky(eye + scale * second).diagonal().log().sum()


def rate_gain(
    seconds: Float[Tensor, "class dim dim"], share: Float[Tensor, "class"], scale: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "class"]]:
    """Return the rate of all rows minus the classes' mean rate, and each class's rate.

    Parameters
    ----------
    seconds : Float[Tensor, "class dim dim"]
        Second moments of the unit rows of each class.
    share : Float[Tensor, "class"]
        Share of the rows that each class holds.
    scale : float
        ``dim / eps2``.
    """
    whole = gaussian_rate((share[:, None, None] * seconds).sum(0), scale)
    each = torch.stack([gaussian_rate(second, scale) for second in seconds])
    return whole - share @ each, each
