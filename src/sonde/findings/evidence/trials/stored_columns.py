"""Columns of a table, compared with the mean and standard deviation stored in the model.

A net for tables often carries the mean and the standard deviation of each column, in a batch norm
or in buffers of its own. They are those of the training rows: a column that lies elsewhere while
most columns fit is not the column that the model was trained on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.findings.evidence.trials.input_forms import (
    Change,
    CodedChange,
    Inputs,
    column_changes,
    line_of,
)
from sonde.tap import LiveStream

NEAR, LIKE = 0.5, math.log(1.5)
"""Distance of means in stored standard deviations, and log of a ratio of spreads, that fit."""
FAR, UNLIKE = 2.0, math.log(4.0)
MOST_OFF: Final = 0.5
LEAST_COLUMNS: Final = 4
TAIL, VARIANCE = 0.05, 2.0
"""Fraction of the rows in a column's tail; the tail index below which there is no variance."""
LEAST_ROWS: Final = 20
"""Rows from which it is no chance that a column holds whole numbers alone."""
FITTING: Final = 0.25
"""Fraction of the columns that must fit if others were cut."""
UNSURE: Final = 0.5
"""Stored variance relative to the least one of whole numbers: running variances are estimates."""
ROUNDED: Final = 2.0**-8
"""Relative error of stored means, as of bfloat16."""
LEFT: Final = 1e-2
"""Least variance of a column beside what is left of the variance 1 of a new batch norm."""


@dataclass(frozen=True, eq=False)
class OffColumn:
    """A column whose mean or standard deviation differs from those stored in the model.

    Parameters
    ----------
    name : str
    index : int
        Position in the table.
    stored, found : (float, float)
        Mean and standard deviation.
    """

    name: str
    index: int
    stored: tuple[float, float]
    found: tuple[float, float]


@dataclass(frozen=True, eq=False)
class StoredColumns:
    """The columns that do not fit, and the changes that correct them.

    Parameters
    ----------
    where : str
        The buffer that holds the means.
    off : tuple of OffColumn
    n_columns : int
        All columns.
    n_fit : int
        Columns whose mean and standard deviation are near the stored ones; some columns are neither
        near nor off.
    words : tuple of str
        Words for the change of each column that one change makes fit, as in the forms of inputs.
    change : callable or None
        All these changes one after the other, with their code; None if no change makes a column
        fit.
    cut : tuple of OffColumn
        Columns of whole numbers whose stored mean and standard deviation no whole numbers have:
        they were rounded or cut, and no change brings back what was lost.
    """

    where: str
    off: tuple[OffColumn, ...]
    n_columns: int
    n_fit: int
    words: tuple[str, ...]
    change: Change | None
    cut: tuple[OffColumn, ...] = ()


def stored_columns(stream: LiveStream, x: Inputs, names: Sequence[str]) -> StoredColumns | None:
    """Return the columns of a table that do not fit the model's stored statistics, or None.

    None as well if the model has stored nothing of the kind, or if most columns do not fit: then
    all inputs are in another form.
    """
    if x.ndim != 2 or len(names) != x.shape[1] or len(names) < LEAST_COLUMNS:
        return None
    x = x.detach().cpu().double()
    pairs = list(_pairs(stream, x.shape[1]))
    cut = _cut(x, names, pairs)
    if cut is not None:
        return cut
    typical = [_quantile(x, mean, spread) for _, mean, spread in pairs]
    if not min(typical, default=math.inf) < 1:
        return None
    where, mean, spread = pairs[typical.index(min(typical))]
    off = torch.nonzero(_is_off(x, mean, spread)).flatten().tolist()
    if not off or len(off) > MOST_OFF * len(names):
        return None
    listed = _listed(x, names, mean, spread, off)
    words, change = _fitting(x, names, mean, spread, off)
    n_fit = int((_misfit(x, mean, spread) < 1).sum())
    return StoredColumns(where, listed, len(names), n_fit, words, change)


def _listed(
    x: Inputs, names: Sequence[str], mean: Tensor, spread: Tensor, which: Sequence[int]
) -> tuple[OffColumn, ...]:
    return tuple(
        OffColumn(
            str(names[i]),
            i,
            (float(mean[i]), float(spread[i])),
            (float(x[:, i].mean()), float(x[:, i].std(correction=0))),
        )
        for i in which
    )


def _cut(
    x: Inputs, names: Sequence[str], pairs: Sequence[tuple[str, Tensor, Tensor]]
) -> StoredColumns | None:
    """Return the columns that were rounded or cut to whole numbers; None if there are none.

    Whole numbers with mean m vary at least by f (1 - f), where f is what m has behind the point.
    """
    quartile = [_quantile(x, mean, spread, FITTING) for _, mean, spread in pairs]
    if len(x) < LEAST_ROWS or not min(quartile, default=math.inf) < 1:
        return None
    where, mean, spread = pairs[quartile.index(min(quartile))]
    ends = torch.stack([mean - ROUNDED * mean.abs(), mean + ROUNDED * mean.abs()])
    rest = ends - ends.floor()
    least = (rest * (1 - rest)).amin(0) * (ends[0].floor() == ends[1].floor())
    is_cut = (x == x.round()).all(0) & (spread.square() < UNSURE * least)
    which = torch.nonzero(is_cut).flatten().tolist()
    if not which:
        return None
    cut = _listed(x, names, mean, spread, which)
    n_fit = int((_misfit(x, mean, spread) < 1).sum())
    return StoredColumns(where, (), len(names), n_fit, (), None, cut)


def _pairs(
    stream: LiveStream, n: int
) -> Iterator[tuple[str, Float[Tensor, "column"], Float[Tensor, "column"]]]:
    """Yield pairs of stored vectors as wide as the table: a mean and a standard deviation."""
    held: dict[str, dict[str, Tensor]] = {}
    module = stream.model.module
    for name, one in module.named_modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.num_features == n:
            yield from _of_norm(name, one)
    for name, value in (*module.named_buffers(), *module.named_parameters()):
        if value.is_floating_point() and not value.is_meta and tuple(value.shape) in ((n,), (1, n)):
            owner, _, last = name.rpartition(".")
            held.setdefault(owner, {})[last] = value.detach().cpu().double().flatten()
    for owner, some in held.items():
        if isinstance(module.get_submodule(owner), nn.modules.batchnorm._BatchNorm):
            continue
        for first, mean in some.items():
            for second, other in some.items():
                if first == second or not bool((other > 0).all()):
                    continue
                where = f"{owner}.{first}" if owner else first
                for spread in (other, other.sqrt(), 1 / other):
                    yield where, mean, spread


def _of_norm(
    name: str, norm: nn.modules.batchnorm._BatchNorm
) -> Iterator[tuple[str, Float[Tensor, "column"], Float[Tensor, "column"]]]:
    """Yield running statistics, corrected for the rest of their initial mean 0 and variance 1.

    After few steps the variance of a column with small numbers is still mostly that of a new norm:
    its spread is not known then (NaN).
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or norm.momentum is None:
        return
    n = int(norm.num_batches_tracked) if norm.num_batches_tracked is not None else 0
    left = (1 - norm.momentum) ** n
    if left < 1:
        mean, variance = (v.detach().cpu().double() for v in (mean, variance))
        moved = (variance - left) / (1 - left)
        moved = torch.where(moved > max(LEFT * left, 1e-30), moved, math.nan)
        yield f"{name}.running_mean", mean / (1 - left), moved.sqrt()


def _quantile(x: Inputs, mean: Tensor, spread: Tensor, q: float = 0.5) -> float:
    """Return a quantile of the columns' misfit; infinite if half of the deviations are unknown."""
    misfit = _misfit(x, mean, spread)
    finite = misfit[~misfit.isnan()]
    if 2 * len(finite) <= len(misfit):
        return math.inf
    return float(finite.quantile(q, interpolation="lower"))


def _misfit(x: Inputs, mean: Tensor, spread: Tensor) -> Float[Tensor, "column"]:
    """Return the misfit of each column: below 1 if its mean and standard deviation fit."""
    shift, ratio = _apart(x, mean, spread)
    return torch.maximum(shift / NEAR, ratio / LIKE)


def _apart(x: Inputs, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    shift = (x.mean(0) - mean).abs() / spread
    ratio = (x.std(0, correction=0).clamp(min=1e-30) / spread).log().abs()
    return shift, ratio


def _is_off(x: Inputs, mean: Tensor, spread: Tensor) -> Tensor:
    shift, ratio = _apart(x, mean, spread)
    return (shift > FAR) | ((ratio > UNLIKE) & ~_has_heavy_tail(x))


def _has_heavy_tail(x: Inputs) -> Bool[Tensor, "column"]:
    """Return whether a few rows make up a column's variance: then any other sample has another.

    Hill's estimate of the tail index about the median, less its standard error, is below 2.
    """
    k = max(2, int(TAIL * len(x)))
    top = (x - x.median(0).values).abs().topk(min(k + 1, len(x)), 0).values.clamp(min=1e-300)
    index = 1 / (top[:-1] / top[-1]).log().mean(0).clamp(min=1e-12)
    return index * (1 - k**-0.5) < VARIANCE


def _fitting(
    x: Inputs, names: Sequence[str], mean: Tensor, spread: Tensor, off: Sequence[int]
) -> tuple[tuple[str, ...], Change | None]:
    """Return the best-fitting change of each column, if one fits, and all changes together."""
    forms = column_changes(x, names)
    touched = {words: _touched(change, x) for words, change in forms.items()}
    chosen: dict[str, Change] = {}
    # the partner of an exchange may be less far off
    left = set(torch.nonzero(_misfit(x, mean, spread) >= 1).flatten().tolist())
    for i in off:
        own = [words for words, some in touched.items() if i in some and some <= left]
        fits = {w: _misfit(forms[w](x), mean, spread)[sorted(touched[w])].max() for w in own}
        best = min(fits, key=lambda words: float(fits[words]), default=None)
        if best is not None and float(fits[best]) < 1:
            chosen[best] = forms[best]
            left -= touched[best]
    if not chosen:
        return (), None

    def change(x: Inputs) -> Inputs:
        for one in chosen.values():
            x = one(x)
        return x

    lines = [line_of(one) for one in chosen.values()]
    columns = tuple(sorted(set().union(*(touched[words] for words in chosen))))
    return tuple(chosen), CodedChange(change, "; ".join(lines) if all(lines) else "", columns)


def _touched(change: Change, x: Inputs) -> set[int]:
    """Return the columns that a change modifies."""
    return set(torch.nonzero((change(x[:8]) != x[:8]).any(0)).flatten().tolist())
