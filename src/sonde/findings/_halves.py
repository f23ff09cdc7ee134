"""Intervals of figures from random halves of the sampled rows."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings.evidence import SiteEvidence, rows_as_float
from sonde.stats.halves import half_error, random_halves

Z = 1.959964


def interval(
    value: float, site: SiteEvidence, figure: Callable[[Float[Tensor, "row dim"]], float]
) -> tuple[float | None, float | None]:
    """Return a 95 % interval about ``value``: the spread of a figure over random halves.

    The spread is that of the sample; where more rows were seen, it shrinks by their root.
    """
    rows = rows_as_float(site.sample)
    if len(rows) < 8:
        return None, None
    masks = random_halves(site.sample.group)
    values = torch.tensor([figure(rows[mask]) for mask in masks], dtype=torch.float64)
    values = values[torch.isfinite(values)]
    if len(values) < 2:
        return None, None
    se = float(half_error(values)) * math.sqrt(len(rows) / max(site.sample.n, len(rows)))
    return value - Z * se, value + Z * se
