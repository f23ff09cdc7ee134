"""Give the first layers of a model more of a cache's budget than the last ones (PyramidKV)."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from sonde.core import CacheRule, InputError


def pyramid(rule: CacheRule, n_layers: int, top: float = 0.5) -> list[CacheRule]:
    """Return the rule of each layer, with budgets that fall in equal steps with depth.

    The last layer has ``top`` times the mean budget, the first ``2 - top`` times. Open a cache with
    ``caching(model, found.__getitem__)``. With ``top`` above 1 budgets rise.

    Parameters
    ----------
    rule : CacheRule
        Rule whose budget is the mean over layers.
    n_layers : int
        Number of layers.
    top : float, default=0.5
        In (0, 2).

    Raises
    ------
    InputError
        If a budget would fall below one token or rise above all tokens.

    Examples
    --------
    >>> from sonde.compress import SnapKV
    >>> [found.budget for found in pyramid(SnapKV(budget=100), 3, top=0.4)]
    [160, 100, 40]

    References
    ----------
    cai2024pyramidkv
    """
    if not 0 < top < 2 or n_layers < 1:
        raise InputError(
            f"pyramid: expected top in (0, 2) and n_layers from 1, got {top} and {n_layers}."
        )
    step = (2 - 2 * top) / max(n_layers - 1, 1)
    factors = [2 - top - step * i if n_layers > 1 else 1.0 for i in range(n_layers)]
    exact = [rule.budget * factor for factor in factors]
    if isinstance(rule.budget, float):
        budgets: list[int | float] = list(exact)
    else:
        # rounded sums, so that the budgets add up to those of all layers
        ends = [round(sum(exact[:i])) for i in range(n_layers + 1)]
        budgets = [b - a for a, b in pairwise(ends)]
    return [replace(cast(Any, rule), budget=budget) for budget in budgets]
