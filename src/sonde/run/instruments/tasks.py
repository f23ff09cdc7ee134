"""Assign instruments to sites, and collect the requests that follow."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError, SondeWarning
from sonde.core.instrument import (
    SAMPLE,
    Detector,
    Every,
    Instrument,
    OnlySinks,
    Where,
    reads_rows,
)
from sonde.core.plan import Split
from sonde.core.reduction import AUTO, reduction_at
from sonde.core.sinks import KEEP, Sinks
from sonde.core.site import HEAD_INPUT, POSITIONS
from sonde.core.state import digest
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.engine.errorbars import SampleRows
from sonde.engine.passes import merge_pair
from sonde.engine.requests import Request, States, Task, requests, terms_of
from sonde.run.instruments.asked import at_head
from sonde.stats import Calibrated, HashSample, HashSampleState

MOST_NAMED = 8


def assign(
    instruments: Iterable[Instrument],
    schema: Sequence[SiteSchema],
    split: Split | None,
    reduction: str = AUTO,
    heads: frozenset[str] | None = None,
    *,
    grouped: bool = False,
) -> list[Task]:
    """Assign each instrument to each site, each pair of adjacent sites, or all sites at once.

    An instrument that reads the logits alone is the same at every site and stands once, at the last
    site. Detectors are calibrated if the plan holds rows out, on one score for each example if
    ``reduction`` says so. Equal instruments count once. Results that cannot be computed are left
    out and named in one warning. ``heads`` are the sites for methods that ask for the input of the
    final linear layer, or None if these sites are unknown. ``grouped`` says whether examples come
    in groups.

    Raises
    ------
    InputError
        If nothing is left, or if all rows were read by a further reducer (``site|reducer``).
    """
    widths = {s.key: s.dim for s in schema if "|" not in s.key}
    by_key = {s.key: s for s in schema}
    if not widths:
        raise InputError(_only_further(schema))
    tasks: list[Task] = []
    skipped: list[str] = []
    distinct = {digest(instrument): instrument for instrument in instruments}
    for instrument in distinct.values():
        places = _places(instrument, tuple(widths))
        if heads is not None and at_head(instrument):
            places = [keys for keys in places if heads.issuperset(keys)]
            if not places:
                skipped.append(_not_at_head(instrument, tuple(widths)))
                continue
        readable = [keys for keys in places if _has_reducer(instrument, [by_key[k] for k in keys])]
        if places and not readable:
            skipped.append(_unreadable(instrument, schema))
            continue
        places = readable
        fitting = [keys for keys in places if _has_one_width(instrument, keys, widths)]
        for keys in fitting:
            own = instrument.at_width(widths[keys[0]]) if len(keys) == 1 else instrument
            if grouped or not all(by_key[key].reducer.one_row for key in keys):
                own = own.in_groups()
            if split is not None and isinstance(own, Detector):
                reducers = [str(by_key[key].reducer) for key in keys]
                how = reduction_at(reducers, reduction, own.reduces)
                _check_reduction(own, how)
                tasks.append(Task(Calibrated.of(own, how), keys))
            else:
                tasks.append(Task(own, keys))
        if len(fitting) < max(1, len(places)):
            skipped.append(_skipped(instrument, places, fitting, widths))
    if not tasks:
        raise InputError(" ".join(skipped) + " Name other sites (--sites).")
    if skipped:
        warnings.warn(f"left out: {' '.join(skipped)}", SondeWarning, stacklevel=3)
    return tasks


def _only_further(schema: Sequence[SiteSchema]) -> str:
    reducer = next((str(s.reducer) for s in schema), "tokens")
    named = ", ".join(s.key for s in schema[:MOST_NAMED])
    return (
        "fit: expected rows of the main reducer, got only rows of further reducers "
        f"({named or 'nothing'}). Read the model with reducer={reducer!r} (--reducer {reducer}) "
        "and fit on those rows."
    )


def _check_reduction(detector: Detector, how: str | None) -> None:
    if how is None and detector.whole_examples:
        raise InputError(
            f"{type(detector).__name__}: expected a score for each example to calibrate, got "
            "reduction 'rows'. This detector scores whole examples: leave the reduction at "
            "auto, take max, mean or topk_mean(k), or fit without calibration and score the "
            "rows."
        )


def _places(instrument: Instrument, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the sites of each result: each site, each pair of adjacent sites, or all sites."""
    if instrument.span == "one":
        return [(key,) for key in (keys if reads_rows(instrument) else keys[-1:])]
    if instrument.span == "pair":
        return list(pairwise(keys))
    return [keys] if len(keys) >= instrument.least_sites else []


def _has_one_width(
    instrument: Instrument, keys: tuple[str, ...], widths: Mapping[str, int]
) -> bool:
    return not instrument.equal_widths or len({widths[key] for key in keys}) == 1


def _has_reducer(instrument: Instrument, sites: Sequence[SiteSchema]) -> bool:
    """Return whether the sites are read with the reducer that the instrument requires, if any.

    Plain arrays pass: no module made them, so their reducer is unknown.
    """
    asked = instrument.reading().get("reducer")
    return all(asked in (None, POSITIONS, s.reducer.name) or s.module == "" for s in sites)


def _unreadable(instrument: Instrument, schema: Sequence[SiteSchema]) -> str:
    asked = instrument.reading()["reducer"]
    reducers = sorted({str(s.reducer) for s in schema})
    return (
        f"{type(instrument).__name__}: expected rows of the reducer {asked!r}, got "
        f"{', '.join(reducers)}. Read with reducer={asked!r}."
    )


def _not_at_head(instrument: Instrument, keys: tuple[str, ...]) -> str:
    more = "" if len(keys) <= MOST_NAMED else f" and {len(keys) - MOST_NAMED} more"
    return (
        f"{type(instrument).__name__}: expected the input rows of the model's final linear "
        f"layer, got {', '.join(keys[:MOST_NAMED])}{more}. Read with sites={HEAD_INPUT!r}."
    )


def _skipped(
    instrument: Instrument,
    places: list[tuple[str, ...]],
    fitting: list[tuple[str, ...]],
    widths: Mapping[str, int],
) -> str:
    """Return a sentence on the sites where an instrument cannot be fitted, and why."""
    name = type(instrument).__name__
    if not places:
        return f"{name}: expected at least two sites, got {list(widths)}."
    wrong = [keys for keys in places if keys not in fitting]
    named = [" & ".join(f"{k} ({widths[k]})" for k in keys) for keys in wrong[:MOST_NAMED]]
    more = len(wrong) - len(named)
    rest = f" and {more} more" if more else ""
    return f"{name}: expected sites of the same width, got {', '.join(named)}{rest}."


@dataclass(frozen=True)
class ErrorSample:
    """Sampled columns from which the error bars of some tasks are computed.

    Parameters
    ----------
    columns : tuple of str
    groups : bool
        Whether whole groups are sampled.
    split : Split or None
    sinks : bool, default=False
        Whether rows of sinks are sampled too, separately, to compute values that include them.
    """

    columns: tuple[str, ...]
    groups: bool
    split: Split | None
    sinks: bool = False

    @property
    def filters(self) -> tuple[Where, ...]:
        """Filters of the rows, each with a sample of its own."""
        return (Every(), OnlySinks()) if self.sinks else (Every(),)

    def request(self, key: str, column: str, where: Where) -> list[Request]:
        """Return the request whose merged states hold a column at a site."""
        statistic = HashSample(SAMPLE, column=column, groups=self.groups)
        parts = ("all",) if self.split is None else ("fit", "held")
        return [Request(statistic, (key,), where, part) for part in parts]

    def state(self, key: str, column: str, states: States, where: Where) -> HashSampleState | None:
        """Return the sample of a column at a site over all rows that a filter keeps."""
        merged = None
        for request in self.request(key, column, where):
            merged = merge_pair(request.statistic, merged, states.get(request.id))
        return merged  # type: ignore[return-value]

    def rows(
        self,
        keys: Sequence[str],
        states: States,
        n_groups: int,
        where: Where = Every(),  # noqa: B008
    ) -> SampleRows | None:
        """Return the sampled rows at some sites, joined on their sampling keys.

        These are the rows of whole groups; or single rows, if there are no groups and an example
        has several rows.
        """
        samples = {k: {c: self.state(k, c, states, where) for c in self.columns} for k in keys}
        if any(s is None for by_column in samples.values() for s in by_column.values()):
            return None
        firsts = [next(iter(by_column.values())) for by_column in samples.values()]
        shared = set.intersection(*({*s.draw.tolist()} for s in firsts if s is not None))
        n_rows = min(s.n for s in firsts if s is not None)
        one_by_one = not self.groups and n_rows > n_groups
        columns: dict[str, dict[str, object]] = {}
        group = None
        for key, by_column in samples.items():
            columns[key] = {}
            for name, sample in by_column.items():
                assert sample is not None
                whole = range(len(sample.draw)) if one_by_one else sample.whole_groups().tolist()
                keep = [i for i in whole if int(sample.draw[i]) in shared]
                columns[key][name] = sample.rows[keep]
                group = sample.group[keep]
        if group is None or len(group) < 2:
            return None
        return SampleRows(columns, group, n_groups, n_rows if one_by_one else None)


def error_sample(tasks: Iterable[Task], stream: Stream, split: Split | None) -> ErrorSample | None:
    """Return the sample of rows for error bars, or None if no task uses influence functions."""
    names: set[str] = set()
    for task in tasks:
        terms = terms_of(task, split)
        if not task.instrument.estimates or any(
            type(t.statistic).influence is Statistic.influence for t in terms
        ):
            continue
        names |= {n for t in terms for n in t.statistic.needs()} - {"y", "head"} | {"x"}
    if not names:
        return None
    kept = stream.identity().get("sinks") or KEEP
    sinks = bool(Sinks.parse(kept)) and not all(s.reducer.one_row for s in stream.schema)
    return ErrorSample(tuple(sorted(names)), stream.grouped, split, sinks)


def requests_of(
    tasks: Sequence[Task], sample: ErrorSample | None, split: Split | None
) -> dict[str, Request]:
    """Return every distinct request of the tasks and their error bars."""
    wanted = requests(tasks, split)
    if sample is not None:
        keys = sorted({k for t in tasks for k in t.keys})
        for key in keys:
            for column, where in product(sample.columns, sample.filters):
                wanted.update((r.id, r) for r in sample.request(key, column, where))
    return dict(sorted(wanted.items()))
