"""The mean coding rate of random rows."""

import torch
from jaxtyping import Float
from torch import Tensor

HALVINGS = 60


def expected_rate(values: Float[Tensor, "dim"], n: float, scale: float) -> float:
    """Return the mean coding rate of ``n`` random rows whose second moment has these eigenvalues.

    Exact in the limit of many rows and dimensions. Rows need not be normal, but must have nearly
    equal lengths in the metric of ``(1 + scale second)^-1``.
    """
    loud = scale * values.detach().double().clamp(min=0.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):  # the left side grows with the share that is sought
        share = (low + high) / 2
        side = share + float((loud * share / (1.0 + loud * share)).sum()) / n
        low, high = (share, high) if side < 1.0 else (low, share)
    t = torch.tensor(high, dtype=torch.float64)
    return float((loud * t).log1p().sum() - n * (t.log() + 1.0 - t)) / 2.0
