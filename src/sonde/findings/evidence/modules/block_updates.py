"""How much a block changes its input, in units of the input's standard deviation."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings.evidence.half_intervals import ends
from sonde.findings.evidence.record import SiteEvidence, rows_as_float
from sonde.stats import MomentsState
from sonde.stats.halves import random_halves


def update_per_spread(update: MomentsState, received: MomentsState) -> float | None:
    """Return a block's update: rms divided by the standard deviation before it, median.

    None if no unit varied before the update.
    """
    return _median(update.mean.square() + update.variance, received.variance)


def _median(square: Float[Tensor, "dim"], variance: Float[Tensor, "dim"]) -> float | None:
    alive = variance > 0
    if not bool(alive.any()):
        return None
    return float((square[alive] / variance[alive]).median().sqrt())


def sampled_ends(
    before: SiteEvidence, site: SiteEvidence, value: float, n_groups: int
) -> tuple[float | None, float | None]:
    """Return a 95 % interval from random halves, or (None, None) if rows do not match."""
    if site.all.key != site.schema.key or not torch.equal(before.sample.draw, site.sample.draw):
        return None, None
    x, y = rows_as_float(before.sample), rows_as_float(site.sample)
    values = []
    for mask in random_halves(site.sample.group):
        ratio = _median((y - x)[mask].square().mean(0), x[mask].var(0, correction=0))
        if ratio is not None:
            values.append(ratio)
    if len(values) < 2:
        return None, None
    return ends(value, torch.tensor(values, dtype=torch.float64), site.sample.group, n_groups)
