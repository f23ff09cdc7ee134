"""The mean coding rate of random rows."""

import torch
from jaxtyping import Float
from torch import Tensor

HALVINGS = 60


def expected_rate(values: Float[Tensor, "dim"], n: float, scale: float) -> float:
    """Return the mean rate of the second moment of ``n`` rows, whose law has these eigenvalues.

    The limit of many rows and dimensions; it needs rows of nearly one length in the metric of
    ``(1 + scale second)^-1``, but no normal ones.
    """
    loud = scale * values.detach().double().clamp(min=0.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):  # the left side grows with the share that is sought
        share = (low + high) / 2
        side = share + float((loud * share / (1.0 + loud * share)).sum()) / n
        low, high = (share, high) if side < 1.0 else (low, share)
    t = torch.tensor(high, dtype=torch.float64)
    return float((loud * t).log1p().sum() - n * (t.log() + 1.0 - t)) / 2.0
