"""The mean coding rate of random rows."""

import torch
from jaxtyping import Float
from torch import Tensor

HALVINGS = 60


def expected_rate(
    second: Float[Tensor, "dim dim"], mean: Float[Tensor, "dim"], n: float, scale: float
) -> float:
    """Return the mean coding rate of ``n`` random rows of unit length with these moments.

    The limit of many rows and dimensions, and the next term of its expansion in ``1 / n``:
    ``(-ln(1 - r) - v / n) / 4``. Here ``r`` is the sum of squared leverages over ``n``, and ``v``
    the variance of a row's leverage; rows vary as normal ones whose length is fixed. The term falls
    with ``n`` as the standard deviation of the rate does, so no number of rows makes up for it.
    """
    values, basis = torch.linalg.eigh(second.detach().double())
    loud = scale * values.clamp(min=0.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):  # the left side grows with the share that is sought
        share = (low + high) / 2
        side = share + float((loud * share / (1.0 + loud * share)).sum()) / n
        low, high = (share, high) if side < 1.0 else (low, share)
    t = torch.tensor(high, dtype=torch.float64)
    limit = (loud * t).log1p().sum() - n * (t.log() + 1.0 - t)
    lever = loud * t / (1.0 + loud * t)
    centre = basis.T @ mean.detach().double()
    spread = _variance_at_length(scale * t / (1.0 + loud * t), values, centre)
    square = (lever.square().sum() / n).clamp(max=0.5)
    return float(limit / 2.0 - ((-square).log1p() + spread / n) / 4.0)


def _variance_at_length(
    metric: Float[Tensor, "dim"], values: Float[Tensor, "dim"], mean: Float[Tensor, "dim"]
) -> Float[Tensor, ""]:
    """Return the variance of ``x^T diag(metric) x`` of normal rows, given ``|x|``.

    ``values`` is the diagonal of the second moment in its eigenbasis, ``mean`` the mean there.
    """
    covariance = torch.diag(values) - torch.outer(mean, mean)

    def joint(a: Tensor, b: Tensor) -> Tensor:
        products = 2 * (a @ covariance.square() @ b)
        return 4 * (mean * a) @ covariance @ (mean * b) + products

    one = torch.ones_like(metric)
    total = joint(one, one)
    if not bool(total > 0):
        return torch.zeros_like(total)
    rest = metric - joint(metric, one) / total
    return joint(rest, rest)
