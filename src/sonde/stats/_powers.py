"""Exact powers of two, which ``torch.ldexp`` does not guarantee."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def power_of_two(exponent: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``2^exponent`` in float64.

    Examples
    --------
    >>> power_of_two(torch.tensor([-1, 3])).tolist()
    [0.5, 8.0]
    """
    exact = np.ldexp(1.0, exponent.cpu().numpy().astype(np.int32))
    return torch.as_tensor(exact, dtype=torch.float64).to(exponent.device)
