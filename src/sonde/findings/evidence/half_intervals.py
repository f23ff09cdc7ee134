"""Confidence intervals of statistics, from random halves of the sampled rows."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings.evidence.record import SiteEvidence, rows_as_float
from sonde.stats.halves import half_error, random_halves

Z = 1.959964


def interval(
    value: float,
    site: SiteEvidence,
    n_groups: int,
    figure: Callable[[Float[Tensor, "row dim"]], float],
) -> tuple[float | None, float | None]:
    """Return a 95 % interval around ``value`` from the statistic on random halves.

    The spread comes from the sample. If the data have more groups (``n_groups``) than the sample,
    the spread shrinks by the root of the ratio.
    """
    rows = rows_as_float(site.sample)
    if len(rows) < 8:
        return None, None
    masks = random_halves(site.sample.group)
    values = torch.tensor([figure(rows[mask]) for mask in masks], dtype=torch.float64)
    values = values[torch.isfinite(values)]
    if len(values) < 2:
        return None, None
    return ends(value, values, site.sample.group, n_groups)


def ends(
    value: float, halves: Float[Tensor, "half"], group: Int[Tensor, "row"], n_groups: int
) -> tuple[float, float]:
    """Return a 95 % interval around ``value`` from statistics of random halves of the groups."""
    present = len(torch.unique(group))
    se = float(half_error(halves, group)) * math.sqrt(present / max(n_groups, present))
    return value - Z * se, value + Z * se
