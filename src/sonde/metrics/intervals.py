"""Statistics of labelled rows, with bootstrap intervals over groups."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import FEW_GROUPS, MANY_GROUPS, effective_groups, widen_ends, widen_error
from sonde.core.result import Direction, Result
from sonde.core.wording import plural
from sonde.stats import clopper_pearson, error_if_all_agree

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
        Ends of the interval at ``level``; ``se`` is the spread over the resamples. Of fewer than 32
        groups, or of groups with rows of the rarer kind, both are widened by Student's t, and
        groups of uneven sizes count as fewer; of a single group there are none.
    level : float, default=0.95
        Probability with which the interval should hold the figure of fresh rows.
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
    groups = group.detach().cpu().flatten() if isinstance(group, Tensor) else _flat(group)
    if len(groups) != n_rows:
        raise InputError(
            f"metrics: expected a group for each of {plural(n_rows, 'row')}, got {len(groups)}."
        )
    if isinstance(groups, Tensor):
        return torch.unique(groups, return_inverse=True)[1]
    try:
        return torch.as_tensor(np.unique(groups, return_inverse=True)[1])
    except TypeError as error:
        raise InputError(
            f"metrics: expected numbers or texts as groups, got {groups[0]!r}. Give every row a "
            "group."
        ) from error


def _flat(group: Any) -> Tensor | np.ndarray:
    try:
        flat = np.asarray(group).ravel()
    except ValueError as error:
        raise InputError("metrics: expected one group for each row, got a ragged list.") from error
    numeric = flat.dtype.kind in "fiub" and flat.dtype.isnative
    return torch.as_tensor(flat.copy()) if numeric else flat


def measured(
    figure: Figure,
    member: Int[Tensor, "row"],
    bootstrap: Bootstrap,
    *,
    kinds: Sequence[Bool[Tensor, "row"]] = (),
    direction: Direction = "higher",
    **fields: Any,
) -> Metric:
    """Return a statistic of weighted rows with its standard error and interval.

    Parameters
    ----------
    figure : callable
        Weights (resample, row) to figures (resample,).
    member : Int[Tensor, "row"]
        The group of each row.
    bootstrap : Bootstrap
    kinds : sequence of Bool[Tensor, "row"]
        Kinds of rows that the figure compares: the groups of the rarest kind are counted as few.
    direction
        As of a result.
    **fields
        Other fields of the result.
    """
    value = float(figure(torch.ones(1, len(member), dtype=torch.float64))[0])
    resampled = bootstrap.values(figure, member)
    kept = resampled[resampled.isfinite()]
    n = int(member.max()) + 1
    few = min(counted_groups(member, kind) for kind in (None, *kinds))
    flags: tuple[str, ...] = ("dead",) if math.isnan(value) else ()
    nominal = fields.get("range", (-math.inf, math.inf))
    ends = (math.nan, math.nan, None) if flags else _spread(kept, few, bootstrap.level, nominal)
    low, high, se = ends
    if low == high:
        flags = ("saturated",)
        low, high, se = _if_all_agree(value, few, bootstrap.level, nominal)
    elif not flags:  # resamples of a figure that is never below 0 may all lie above it
        low, high = min(low, value), max(high, value)
    if few < FEW_GROUPS and len(kept) and "dead" not in flags:
        flags = (*flags, "few_groups")
    conventions = {
        "se": f"bootstrap of {plural(n, 'group')}, {len(resampled)} resamples{_law(few)}",
        "independent_groups": few,
        "seed": bootstrap.seed,
        "undefined_resamples": len(resampled) - len(kept),
        **fields.pop("conventions", {}),
    }
    return Metric(
        value=value, se=se, low=low, high=high, level=bootstrap.level, resampled=resampled,
        n=n, flags=flags, direction=direction, conventions=conventions,
        **fields,
    )  # fmt: skip


def difference(first: Metric, second: Metric) -> Metric:
    """Return ``first - second`` of two scores of the same rows, in paired resamples.

    Parameters
    ----------
    first : Metric
        First metric, with its resamples.
    second : Metric
        Second metric, of the same rows and with the same resamples.

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
    if a is None or b is None:
        without = " and ".join(w for w, x in (("first", a), ("second", b)) if x is None)
        raise InputError(
            f"difference: expected two metrics with resampled values, got none in the {without}. "
            "Take functions of sonde.metrics with resamples of at least 1."
        )
    if not same or first.level != second.level:
        sources = (
            f"standard errors from {m.conventions.get('se')} (seed {m.conventions.get('seed')}, "
            f"level {m.level:g})"
            for m in (first, second)
        )
        raise InputError(
            "difference: expected two metrics with the same rows, groups, resamples, seed and "
            f"level, got {' and '.join(sources)}."
        )
    gap = a - b
    nominal = (first.range[0] - second.range[1], first.range[1] - second.range[0])
    few = first.conventions["independent_groups"]
    low, high, se = _spread(gap[gap.isfinite()], few, first.level, nominal)
    return Metric(
        value=float(first.value) - float(second.value), se=se, null=0.0, low=low, high=high,
        level=first.level, n=first.n, resampled=gap,
        flags=("few_groups",) if few < FEW_GROUPS else (), n_positive=first.n_positive,
        n_negative=first.n_negative, conventions=first.conventions,
    )  # fmt: skip


def counted_groups(member: Int[Tensor, "row"], kind: Bool[Tensor, "row"] | None = None) -> float:
    """Return the number of equal groups that the groups of a kind of rows are worth."""
    return effective_groups(torch.bincount(member if kind is None else member[kind]))


def _law(n_groups: float) -> str:
    if n_groups < 2:
        return ": a single group has no interval"
    return f", widened by Student's t of {n_groups:.3g}" if n_groups < MANY_GROUPS else ""


def _spread(
    values: Float[Tensor, "resample"], n_groups: float, level: float, range: tuple[float, float]
) -> tuple[float, float, float | None]:
    """Return the interval and the standard error of resampled values; none of a single group."""
    if len(values) < 2 or n_groups < 2:
        return math.nan, math.nan, None
    low, high = widen_ends(values, n_groups, level, range)
    se = float(values.std())
    if n_groups < MANY_GROUPS:  # resamples spread less than fresh draws of groups
        se = widen_error(se * math.sqrt(n_groups / (n_groups - 1)), n_groups)
    return float(low), float(high), se


def _if_all_agree(
    value: float, n_groups: float, level: float, range: tuple[float, float]
) -> tuple[float, float, float | None]:
    """Return the interval of a value at an end of its range, which every group has.

    An unseen kind of groups may be as frequent as the exact interval of 0 of ``n_groups`` allows.
    """
    low, high = range
    at_low, at_high = (math.isclose(value, end, abs_tol=1e-9) for end in range)
    if not (at_low or at_high) or not math.isfinite(high - low):
        return value, value, 0.0
    reach = (high - low) * clopper_pearson(0, int(n_groups), level)[1]
    se = (high - low) * error_if_all_agree(n_groups)
    return (low, low + reach, se) if at_low else (high - reach, high, se)
