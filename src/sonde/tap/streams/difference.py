"""Difference between two readings of the same rows, with a bound for rounding."""

import torch
from jaxtyping import Float
from torch import Tensor

TAU, TAU_NARROW = 1e-3, 3e-2
NARROW = ("float16", "bfloat16")
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
RESOLVED = 2.0


def difference(
    a: Float[Tensor, "row dim"],
    b: Float[Tensor, "row dim"],
    rounding: float,
    resolved: float = RESOLVED,
) -> float:
    """Return the rms difference of two readings over the rms deviation of the first's rows.

    It is the larger of two figures: over all units, and the median over units that vary. In the
    first, one huge unit hides the others; the second does not show a fault of few units. A spread
    so small that the threshold is below ``resolved`` roundings is raised until it equals them.
    """
    finite = torch.isfinite(a).all(dim=1) & torch.isfinite(b).all(dim=1)
    a, b = a[finite], b[finite]
    if len(a) == 0:
        return 0.0
    gap = (a - b).square().mean(0)
    if not bool(gap.any()):
        return 0.0
    tau = TAU_NARROW if rounding > ROUNDING["float32"] else TAU
    least = (resolved * rounding / tau) ** 2 * a.square().mean(0)
    spread = a.var(0, correction=0).maximum(least)
    if not bool(spread.any()):
        spread = a.square().mean(0)
    total = gap.sum() / spread.sum().clamp(min=torch.finfo(torch.float64).tiny)
    alive = spread > 0
    median = (gap[alive] / spread[alive]).median() if bool(alive.any()) else total
    return float(torch.maximum(total, median).sqrt())
