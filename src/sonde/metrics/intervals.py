"""Statistics of labelled rows, with bootstrap intervals over groups."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.result import Direction, Result
from sonde.core.wording import plural

RESAMPLES = 1000
LEVEL = 0.95
CHUNK_ENTRIES = 2_000_000

Figure = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class Metric(Result):
    """A statistic, its percentile interval, and the counts behind it.

    Parameters
    ----------
    low, high : float
        Ends of the interval at ``level``; ``se`` is the spread over the resamples.
    level : float, default=0.95
    n_positive, n_negative : int
        Rows of either kind; unusual ones are positive unless ``conventions`` say otherwise.
    resampled : Float[Tensor, "resample"], optional
        The figure of every resample.
    """

    low: float = math.nan
    high: float = math.nan
    level: float = LEVEL
    n_positive: int = 0
    n_negative: int = 0
    resampled: Float[Tensor, "resample"] | None = None


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap settings: whole groups are resampled with replacement, from one seed.

    Two figures of the same groups with the same settings see the same resamples.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def __post_init__(self) -> None:
        if self.resamples < 0:
            raise InputError(f"metrics: expected resamples of at least 0, got {self.resamples}.")
        if not 0 < self.level < 1:
            raise InputError(f"metrics: expected a level in (0, 1), got {self.level}.")

    def weights(self, member: Int[Tensor, "row"]) -> Iterator[Float[Tensor, "resample row"]]:
        """Yield each row's count in each resample, some resamples at a time."""
        n_groups = int(member.max()) + 1
        generator = torch.Generator().manual_seed(self.seed)
        step = max(1, CHUNK_ENTRIES // len(member))
        for start in range(0, self.resamples, step):
            counts = [
                torch.bincount(
                    torch.randint(n_groups, (n_groups,), generator=generator), minlength=n_groups
                )
                for _ in range(min(step, self.resamples - start))
            ]
            yield torch.stack(counts).double()[:, member]

    def values(self, figure: Figure, member: Int[Tensor, "row"]) -> Float[Tensor, "resample"]:
        """Return the statistic of every resample; NaN if it is undefined there."""
        parts = [figure(weight) for weight in self.weights(member)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def members(group: Any, n_rows: int) -> Int[Tensor, "row"]:
    """Return the index of each row's group (numbers or texts); by default each row is a group."""
    if group is None:
        return torch.arange(n_rows)
    found = group.detach().cpu().flatten() if isinstance(group, Tensor) else _flat(group)
    if len(found) != n_rows:
        raise InputError(
            f"metrics: expected a group for each of {plural(n_rows, 'row')}, got {len(found)}."
        )
    if isinstance(found, Tensor):
        return torch.unique(found, return_inverse=True)[1]
    try:
        return torch.as_tensor(np.unique(found, return_inverse=True)[1])
    except TypeError as error:
        raise InputError(
            f"metrics: expected numbers or texts as groups, got {found[0]!r}. Give every row a "
            "group."
        ) from error


def _flat(group: Any) -> Tensor | np.ndarray:
    try:
        found = np.asarray(group).ravel()
    except ValueError as error:
        raise InputError("metrics: expected one group for each row, got a ragged list.") from error
    numeric = found.dtype.kind in "fiub" and found.dtype.isnative
    return torch.as_tensor(found.copy()) if numeric else found


def measured(
    figure: Figure,
    member: Int[Tensor, "row"],
    bootstrap: Bootstrap,
    *,
    direction: Direction = "higher",
    **fields: Any,
) -> Metric:
    """Return a statistic of weighted rows with its standard error and interval."""
    value = float(figure(torch.ones(1, len(member), dtype=torch.float64))[0])
    found = bootstrap.values(figure, member)
    kept = found[found.isfinite()]
    flags: tuple[str, ...] = ("dead",) if math.isnan(value) else ()
    low, high, se = (math.nan, math.nan, None) if flags else _spread(kept, bootstrap.level)
    if low == high:
        flags = ("saturated",)
    conventions = {
        "se": f"bootstrap of {plural(int(member.max()) + 1, 'group')}, {len(found)} resamples",
        "seed": bootstrap.seed,
        "undefined_resamples": len(found) - len(kept),
        **fields.pop("conventions", {}),
    }
    return Metric(
        value=value, se=se, low=low, high=high, level=bootstrap.level, resampled=found,
        n=int(member.max()) + 1, flags=flags, direction=direction, conventions=conventions,
        **fields,
    )  # fmt: skip


def difference(first: Metric, second: Metric) -> Metric:
    """Return ``first - second`` of two scores of the same rows, in paired resamples.

    Raises
    ------
    InputError
        If the two differ in the number of groups or resamples, in the seed, or in the level.

    Examples
    --------
    >>> from sonde.metrics import auroc
    >>> unusual = [0] * 20 + [1] * 20
    >>> strong = auroc(range(40), unusual)
    >>> weak = auroc([i % 20 for i in range(40)], unusual)
    >>> difference(strong, weak).value
    0.5
    """
    keys = ("se", "seed")
    same = all(first.conventions.get(k) == second.conventions.get(k) for k in keys)
    a, b = first.resampled, second.resampled
    if not same or a is None or b is None or first.level != second.level:
        raise InputError(
            "difference: expected two metrics with the same rows, groups, resamples and "
            f"seed, got standard errors from {first.conventions.get('se')} and "
            f"{second.conventions.get('se')}."
        )
    gap = a - b
    low, high, se = _spread(gap[gap.isfinite()], first.level)
    return Metric(
        value=float(first.value) - float(second.value), se=se, null=0.0, low=low, high=high,
        level=first.level, n=first.n, resampled=gap, n_positive=first.n_positive,
        n_negative=first.n_negative, conventions=first.conventions,
    )  # fmt: skip


def _spread(values: Float[Tensor, "resample"], level: float) -> tuple[float, float, float | None]:
    """Return the percentile interval and the standard deviation of resampled values."""
    if len(values) < 2:
        return math.nan, math.nan, None
    tail = (1 - level) / 2
    ends = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(ends[0]), float(ends[1]), float(values.std())
