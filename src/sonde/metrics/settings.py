"""Choose the setting of a system that meets objectives, such as quality, cost and latency."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from sonde.core.errors import InputError


@final
@dataclass(frozen=True)
class SettingChoice:
    """The setting chosen for one kind of rows.

    Parameters
    ----------
    setting : int or None
        Index of the setting; None if no setting meets all objectives with the confidence asked for.
    means : dict of str to float
        Mean of each objective under that setting; empty for None.
    n : int
        Rows of the kind.
    """

    setting: int | None
    means: dict[str, float]
    n: int


def choose_settings(
    measured: Mapping[str, Float[np.ndarray, "setting row"]],
    minimise: str,
    least: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
    kind: Int[np.ndarray, "row"] | None = None,
    sure: float = 0.95,
) -> dict[int, SettingChoice]:
    """Map objectives to the cheapest setting that meets them, for each kind of rows.

    A setting is any configuration that was run on the same rows: a number of agents, a model, a
    depth of search. It meets ``least["quality"] = 0.8`` if the lower confidence bound of its mean
    quality is at least 0.8. Bounds are one-sided and Student's; ``1 - sure`` is divided by the
    number of settings and objectives, so that trying many settings costs no confidence. Choose
    anew as conditions change: pass costs and latencies as they are now.

    Parameters
    ----------
    measured : mapping of str to array (setting, row)
        Each objective, as it was measured for each row under each setting.
    minimise : str
        The objective whose mean decides among the settings that meet all others.
    least, most : mapping of str to float, optional
        Bounds on the means of objectives.
    kind : int array (row,), optional
        Kind of each row, such as the intent of a query; by default all rows are of kind 0.
    sure : float, default=0.95
        Confidence that no chosen setting misses an objective, for each kind.

    Raises
    ------
    InputError
        If an objective was not measured, shapes differ, or a kind has fewer than two rows.

    Examples
    --------
    Three settings, of which the first is too often wrong and the last is dear:

    >>> right = np.stack([np.arange(40) % 2, np.arange(40) % 10 > 0, np.ones(40)]) * 1.0
    >>> cost = np.repeat([[1.0], [2.0], [9.0]], 40, 1)
    >>> measured = {"quality": right, "cost": cost}
    >>> choose_settings(measured, "cost", least={"quality": 0.7})[0].setting
    1
    """
    bounds = [(name, bound, 1.0) for name, bound in (least or {}).items()]
    bounds += [(name, bound, -1.0) for name, bound in (most or {}).items()]
    wanted = [minimise, *(name for name, _, _ in bounds)]
    table = {name: np.asarray(x, dtype=np.float64) for name, x in measured.items()}
    shapes = {x.shape for x in table.values()}
    if missing := [name for name in wanted if name not in table]:
        raise InputError(
            f"choose_settings: expected measurements of {missing[0]!r}, got those of "
            f"{', '.join(table) or 'nothing'}."
        )
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InputError(
            f"choose_settings: expected arrays of one shape (setting, row) for {sorted({*wanted})},"
            f" got { ({name: x.shape for name, x in table.items()}) }."
        )
    ((settings, rows),) = shapes
    kinds = np.zeros(rows, dtype=np.int64) if kind is None else np.asarray(kind)
    if kinds.shape != (rows,):
        raise InputError(
            f"choose_settings: expected a kind for each of {rows} rows, got kinds of shape "
            f"{kinds.shape}."
        )
    broken = [name for name in wanted if not np.isfinite(table[name]).all()]
    if broken:
        raise InputError(
            f"choose_settings: expected finite objectives, got NaN or infinity in {broken[0]!r}. "
            "Leave these rows out."
        )
    level = 1 - (1 - sure) / max(settings * len(bounds), 1)
    return {
        int(one): _chosen(
            {name: table[name][:, kinds == one] for name in wanted}, minimise, bounds, level
        )
        for one in np.unique(kinds)
    }


def _chosen(
    table: dict[str, Any], minimise: str, bounds: list[tuple[str, float, float]], level: float
) -> SettingChoice:
    n = table[minimise].shape[1]
    if n < 2:
        raise InputError(
            "choose_settings: expected at least two rows of each kind, got one, which has no "
            "confidence bound. Join rare kinds."
        )
    meets = np.ones(len(table[minimise]), dtype=bool)
    for name, bound, sign in bounds:
        x = sign * table[name]
        low = x.mean(1) - _quantile(level, n) * x.std(1, ddof=1) / math.sqrt(n)
        meets &= low >= sign * bound
    if not meets.any():
        return SettingChoice(None, {}, n)
    price = np.where(meets, table[minimise].mean(1), np.inf)
    best = int(price.argmin())
    return SettingChoice(best, {name: float(x[best].mean()) for name, x in table.items()}, n)


@cache
def _quantile(level: float, n: int) -> float:
    from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs]

    return float(t.ppf(level, n - 1))
