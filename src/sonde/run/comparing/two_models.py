"""Compare two models on the same inputs: similar layers, and changes in layers of one name."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core._shown import html_table
from sonde.core.errors import InputError
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.core.wording import plural
from sonde.engine.progress import Bar
from sonde.measure import CorrelationMatch, LayerCKA, MutualKNN, Procrustes, Regression
from sonde.run.comparing.broken_rows import BROKEN
from sonde.run.fitting.evidence import sample
from sonde.run.fitting.fitted import Fitted
from sonde.stats import HashSample, HashSampleState
from sonde.stats.sampled_rows import SampledRows
from sonde.stats.spreads import spreads

LEAST_ROWS = 16
NAMED_UNITS = 5
FOUND_AGAIN = 0.7
"""Least correlation with the best partner at which a unit counts as found in the other model."""
SAME_UNIT = 0.99
"""Least correlation with the best partner at which two units differ only by a scale."""


@dataclass(frozen=True)
class Movement:
    """Change of the states at a site that has equal width in both models.

    Parameters
    ----------
    size : float
        Root mean square change of a row, in standard deviations of the first model's rows along
        the change: ``sonde.stats.spreads.spreads`` has the formula.
    common : float
        Share of the squared change that all rows have in common: 1 is a plain shift.
    direction : float
        Share of the squared change along its strongest direction.
    units : tuple of (int, float)
        The units that moved most, with their root mean square change in standard deviations of
        the unit in the first model.
    own_rank : float
        For each unit of the first model, the share of the second model's other units that correlate
        less with it than the unit of its own number does; mean over units. 1 if units kept their
        number, 0.5 by chance. NaN for fewer than two units that vary.
    n_units : int
        Units that vary in both models.
    """

    size: float
    common: float
    direction: float
    units: tuple[tuple[int, float], ...]
    own_rank: float
    n_units: int


@dataclass(frozen=True)
class SiteMatch:
    """A site of the first model and its match in the second, by name or else by similarity.

    Parameters
    ----------
    site, other : str
    cka, cka_se : float
        Debiased similarity in [0, 1], and its error, which is NaN for too few rows.
    neighbours, neighbours_null : float
        Share of common nearest neighbours, and what chance gives.
    distance : float
        Squared Procrustes distance in [0, 2].
    forward, backward : float
        Share of the other site's variance that a linear map of this site explains, and the reverse,
        beyond what as many unrelated units explain; NaN for too few rows.
    found_again, found_same : float
        Share of this site's units with a partner in the other site (correlation of at least 0.7),
        and share with a partner that differs only in scale (at least 0.99).
    movement : Movement or None
        None if names or widths differ.
    flags : tuple of str
    """

    site: str
    other: str
    cka: float
    cka_se: float
    neighbours: float
    neighbours_null: float
    distance: float
    forward: float
    backward: float
    found_again: float
    found_same: float
    movement: Movement | None
    flags: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TwoModels:
    """The comparison of two models.

    Parameters
    ----------
    sites, others : tuple of str
        Sites of the first and of the second model, in order of execution.
    cka, cka_se : Float[Tensor, "site other"]
        Debiased similarity of every site to every other; the error is NaN for too few rows.
    matches : tuple of SiteMatch
        The match of each site of the first model.
    n_rows, n_missing : int
        Rows that both models have, and sampled rows that only one model has.
    grouped : bool
        Whether rows come in groups. The map then uses a single row of each group.
    """

    sites: tuple[str, ...]
    others: tuple[str, ...]
    cka: Float[Tensor, "site other"]
    cka_se: Float[Tensor, "site other"]
    matches: tuple[SiteMatch, ...]
    n_rows: int
    n_missing: int
    grouped: bool

    def _repr_html_(self) -> str:
        rows = [(m.site, m.other, f"{m.cka:.3f}", f"{m.neighbours:.3f}") for m in self.matches]
        columns = ("site", "site of the other model", "CKA", "common neighbours")
        title = f"Comparison of two models on {plural(self.n_rows, 'row')}"
        return html_table(title, columns, rows, len(rows))


@final
@dataclass(frozen=True)
class RowSample(Instrument):
    """The same sample of rows of each site in every model; no statistic is computed."""

    m: int = SAMPLE

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requested sample of rows."""
        return {"sample": HashSample(self.m)}

    def result(self, sample: HashSampleState) -> Result:
        """Return the number of rows read."""
        return Result(value=float(sample.n), n=sample.n)


def compare_models(first: Fitted, second: Fitted, *, progress: bool = True) -> TwoModels:
    """Compare two models by their fits of ``RowSample`` on the same inputs.

    Rows are joined by their draws, which depend on the input and on the position in it. So the
    order of the inputs does not matter.

    Raises
    ------
    InputError
        If a fit holds no sample, or fewer than 16 rows are in both.
    """
    one, two = _samples(first, "first"), _samples(second, "second")
    joined = SampledRows.of((*one.values(), *two.values()))
    if len(joined) < LEAST_ROWS:
        raise InputError(
            f"compare: expected at least {LEAST_ROWS} rows that both models have in common, "
            f"got {len(joined)}. Give both models the same data. If their tokenizers differ, "
            "use --reducer mean or last."
        )
    both = tuple(one.values()) + tuple(two.values())
    similarity = LayerCKA(max(LEAST_ROWS, *(len(s.draw) for s in both))).result(samples=both)
    k = len(one)
    value = torch.as_tensor(similarity.value)[:k, k:]
    error = (
        torch.full_like(value, math.nan)
        if similarity.se is None
        else torch.as_tensor(similarity.se)[:k, k:]
    )
    others, matches = list(two), list[SiteMatch]()
    with Bar("compare", k, shown=progress) as bar:
        for i, site in enumerate(one):
            j = others.index(site) if site in two else _most_alike(value[i])
            pair = joined.take(torch.arange(len(joined)))
            rows = pair.rows[i], pair.rows[k + j]
            is_same = site == others[j] and rows[0].shape == rows[1].shape
            measured = _measured(rows, pair.group, with_movement=is_same)
            figures = (float(value[i, j]), float(error[i, j]))
            matches.append(SiteMatch(site, others[j], *figures, *measured))
            bar.advance(1)
    seen = [max(len(s.draw) for s in side.values()) for side in (one, two)]
    return TwoModels(
        sites=tuple(one),
        others=tuple(two),
        cka=value,
        cka_se=error,
        matches=tuple(matches),
        n_rows=len(joined),
        n_missing=sum(n - len(joined) for n in seen),
        grouped=joined.grouped,
    )


def _samples(fitted: Fitted, which: str) -> dict[str, HashSampleState]:
    samples: dict[str, HashSampleState] = {}
    for site in fitted.header["sites"]:
        held = sample(fitted, site["text"])
        counters = fitted.header["counters"]
        broken, n = (counters.get(f"{what}|{site['text']}", 0) for what in (BROKEN, "rows"))
        if n and broken == n:
            raise InputError(
                f"compare: expected finite states, got NaN, infinity or numbers too large to "
                f"square in all {n:,} rows of the {which} model at {site['text']}. Check its "
                "weights and inputs: sonde scan names the first module that gives such numbers."
            )
        if held is None or not isinstance(held.state, HashSampleState):
            raise InputError(
                f"compare: the {which} fit holds no sample of rows at {site['text']}. Fit "
                "RowSample on both."
            )
        samples[site["text"]] = held.state
    return samples


def _most_alike(row: Float[Tensor, "other"]) -> int:
    return int(torch.nan_to_num(row, nan=-math.inf).argmax())


def _measured(
    rows: tuple[Tensor, Tensor], group: Tensor, *, with_movement: bool
) -> tuple[float, float, float, float, float, float, float, Movement | None, tuple[str, ...]]:
    x, y = rows
    common = MutualKNN(k=min(10, len(x) // 4)).fit(x, y=y, group=group)
    distance = Procrustes().fit(x, y=y, group=group)
    forward, backward = (
        _beyond_null(Regression().fit(a, y=b, group=group)) for a, b in ((x, y), (y, x))
    )
    match = CorrelationMatch("soft").fit(x, y=y, group=group)
    figure = match.figure[~match.figure.isnan()]
    again, same = (
        float((figure >= least).double().mean()) if len(figure) else math.nan
        for least in (FOUND_AGAIN, SAME_UNIT)
    )
    null = math.nan if common.null is None else float(torch.as_tensor(common.null))
    movement = _movement(x, y) if with_movement else None
    flags = tuple(dict.fromkeys((*common.flags, *distance.flags, *match.flags)))
    numbers = (float(common), null, float(distance), forward, backward, again, same)
    return (*numbers, movement, flags)


def _beyond_null(result: Result) -> float:
    """Return explained variance, rescaled so that unrelated rows give 0 and the maximum is 1."""
    null = 0.0 if result.null is None else float(torch.as_tensor(result.null))
    return (float(result) - null) / (1.0 - null) if null < 0.95 else math.nan


def _movement(x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim"]) -> Movement:
    change = y - x
    total = float(change.square().sum())
    own = _own_rank(x, y)
    if total == 0.0:
        return Movement(0.0, math.nan, math.nan, (), *own)
    common = len(change) * float(change.mean(0).square().sum()) / total
    direction = float(torch.linalg.eigvalsh(change.T @ change)[-1]) / total
    each = change.square().mean(0).sqrt() / x.std(0, correction=0).clamp(
        min=torch.finfo(x.dtype).tiny
    )
    top = torch.argsort(each, descending=True, stable=True)[:NAMED_UNITS].tolist()
    units = tuple((u, float(each[u])) for u in top)
    return Movement(spreads(x, y), common, direction, units, *own)


def _own_rank(x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim"]) -> tuple[float, int]:
    """Return the mean similarity rank of equally numbered units, and how many units vary."""
    varies = (x.std(0) > 0) & (y.std(0) > 0)
    count = int(varies.sum())
    if count < 2:
        return math.nan, count
    first, second = (
        nn.functional.normalize((rows[:, varies] - rows[:, varies].mean(0)).double(), dim=0)
        for rows in (x, y)
    )
    alike = (first.T @ second).abs()
    own = alike.diagonal()[:, None]
    less, tied = (alike < own).sum(1), (alike == own).sum(1) - 1
    return float(((less + 0.5 * tied) / (count - 1)).mean()), count
