"""In-memory fits: the states of units are merged in the fixed binary tree of the plan."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from sonde.core.columns import Columns
from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups
from sonde.core.finite import finite_rows
from sonde.core.hashing import rank_key
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.plan import UNIT_SIZE, Split, groups_are_whole
from sonde.core.result import Result
from sonde.core.statistic import Learner
from sonde.core.stream import Stream
from sonde.engine.array_stream import ARRAY_BATCH, array_stream
from sonde.engine.errorbars import (
    SampleRows,
    Term,
    has_influence,
    left_out,
    result_with_error,
    with_copies,
    with_few_groups,
)
from sonde.engine.passes import (
    close_pass,
    merge_states,
    observe_unit,
    states_of,
    still_learning,
)
from sonde.engine.requests import Request, States, Task, requests, terms_of


def fit_arrays(
    instrument: Instrument, x: Any, label: Any = None, seed: int = 0, **columns: Unpack[Columns]
) -> Result:
    """Return the last result of an instrument on plain arrays, with its standard error."""
    stream = array_stream(x, columns, label, seed, numbered=instrument.rows_numbered)
    if len(stream) == 0:
        raise InputError(f"{type(instrument).__name__}.fit: expected at least one row, got none.")
    keys = tuple(s.key for s in stream.schema)
    if instrument.span == "one" and len(keys) > 1:
        raise InputError(
            f"{type(instrument).__name__}.fit: expected one array, got {len(keys)}. "
            "Fit each site by itself, or use sonde.fit on a stream."
        )
    least = {"one": 1, "pair": 2, "all": instrument.least_sites}[instrument.span]
    if len(keys) < least:
        raise InputError(
            f"{type(instrument).__name__}.fit: expected rows of at least {least} sites, got "
            f"{len(keys)}. Pass the rows of the second site as y, or a mapping of site names to "
            "rows."
        )
    following = instrument.in_groups() if stream.grouped else instrument
    while True:
        task = Task(following, keys)
        states = observe_stream(stream, requests([task]), unit_size=ARRAY_BATCH)
        sample = array_sample(stream, terms_of(task)) if following.estimates else None
        result = result_with_error(following, states_of(task, states), terms_of(task), sample)
        later = following.then(result)
        if later is None:
            instrument.require_rows(result, " & ".join(keys))
            result = with_copies(result, stream.n_copies, len(stream))
            sizes = torch.tensor([*Counter(stream.group_keys).values()])
            result = with_few_groups(result, effective_groups(sizes))
            return left_out(result) if _has_broken_rows(stream, keys) else result
        following = later


def _has_broken_rows(stream: Stream, keys: Sequence[str]) -> bool:
    return any(
        not bool(finite_rows(batch.rows[key]).all())
        for batch in stream.batches(0, len(stream))
        for key in keys
    )


def array_sample(stream: Stream, terms: Sequence[Term]) -> SampleRows | None:
    """Return about ``SAMPLE`` rows of randomly chosen groups, or None without ``influence``."""
    names = {n for t in terms for n in t.statistic.needs()} - {"y", "head"}
    if not all(has_influence(t.statistic) for t in terms):
        return None
    batches = list(stream.batches(0, len(stream)))
    keys = sorted({k for t in terms for k in t.keys})
    group = torch.cat([b.column("group", keys[0]) for b in batches])
    draw = torch.cat([b.column("group_draw", keys[0]) for b in batches])
    finite = torch.stack([torch.cat([finite_rows(b.rows[k]) for b in batches]) for k in keys]).all(
        dim=0
    )
    order = torch.argsort(rank_key(draw), stable=True)
    order = order[finite[order]]
    if len(order) > SAMPLE:
        cut = int(torch.searchsorted(rank_key(draw[order]), rank_key(draw[order[SAMPLE]]).clone()))
        order = order[: cut or SAMPLE]
    columns = {
        k: {n: torch.cat([b.column(n, k) for b in batches])[order] for n in names | {"x"}}
        for k in keys
    }
    unique = cast(Tensor, torch.unique(group[finite]))  # pyright: ignore[reportUnknownMemberType]
    return SampleRows(columns, group[order], len(unique))


def observe_stream(
    stream: Stream,
    wanted: Mapping[str, Request],
    split: Split | None = None,
    unit_size: int = UNIT_SIZE,
) -> States:
    """Return the states over a whole stream, merged unit by unit in memory.

    Learners take the units in order and always at the planned size; the states of all other
    statistics are merged in the plan's tree.
    """
    if any(isinstance(r.statistic, Learner) for r in wanted.values()):
        unit_size = UNIT_SIZE
    if stream.grouped or any(r.statistic.whole_groups for r in wanted.values()):
        bounds = stream.units(unit_size)
    else:
        bounds = [*range(0, len(stream), unit_size), len(stream)]
    check_whole(stream, wanted, bounds)
    chain = {i: r for i, r in wanted.items() if isinstance(r.statistic, Learner)}
    rest = {i: r for i, r in wanted.items() if i not in chain}
    observed = _observe(stream, rest, bounds, split) if rest else {}
    return {**observed, **_learn(stream, chain, bounds, split)}


def check_whole(stream: Stream, wanted: Mapping[str, Request], bounds: Sequence[int]) -> None:
    """Raise if a unit splits a group or an example that a statistic needs whole.

    Raises
    ------
    InputError
        Naming the statistics, and what to sort.
    """
    statistics = [r.statistic for r in wanted.values()]
    groups = {type(s).__name__ for s in statistics if s.whole_groups}
    if groups and stream.grouped and not groups_are_whole(stream.group_keys, bounds):
        raise InputError(
            f"fit: {', '.join(sorted(groups))} needs the rows of a group together, but the rows "
            "of some groups are not adjacent. Sort the data by its group column, or leave that "
            "method out."
        )
    examples = {type(s).__name__ for s in statistics if s.whole_examples}
    members = stream.examples_of_rows if examples else None
    by_order = sorted(
        type(s).__name__ for s in statistics if s.whole_examples and "order" in s.needs()
    )
    if members is not None and by_order:
        raise InputError(
            f"fit: {', '.join(by_order)} needs whole examples and finds them by the column "
            "'order', which has a different number in every row of plain arrays. Use the "
            "column 'example', which has the same value in all rows of an example."
        )
    if members is not None and not groups_are_whole(members, bounds):
        raise InputError(
            f"fit: {', '.join(sorted(examples))} needs the rows of an example together, but the "
            "rows of some examples are not adjacent, or do not fit into one unit. Sort the rows "
            "by their ids."
        )


def _observe(
    stream: Stream, wanted: Mapping[str, Request], bounds: Sequence[int], split: Split | None
) -> States:
    """Return each statistic's state over all units of work.

    States are merged in the order of the plan's tree if the order matters.
    """
    tree: list[tuple[int, States]] = []
    waiting: dict[str, list[Any]] = {i: [] for i, r in wanted.items() if r.statistic.in_any_order}
    full: States = {}
    for start, stop in itertools.pairwise(bounds):
        states = observe_unit(stream.batches(start, stop), wanted, split, states=full)
        full = {i: states.pop(i) for i in full}
        for i in [*waiting]:
            waiting[i] += [s for s in [states.pop(i)] if s is not None]
            if wanted[i].statistic.absorbs(*waiting[i]):
                full[i] = wanted[i].statistic.merge_all(waiting.pop(i))
        tree = grow({i: wanted[i] for i in states}, tree, (0, states))
    rest = {i: r for i, r in wanted.items() if i not in full and i not in waiting}
    late = {i: wanted[i].statistic.merge_all(s) if s else None for i, s in waiting.items()}
    return {**fold(rest, tree), **full, **late}


def _learn(
    stream: Stream, chain: Mapping[str, Request], bounds: Sequence[int], split: Split | None
) -> States:
    """Return the states of the learners, each after its own number of passes."""
    states: States = dict.fromkeys(chain)
    n_done = 0
    while active := still_learning(chain, states, n_done):
        for start, stop in itertools.pairwise(bounds):
            batches = stream.batches(start, stop)
            states.update(observe_unit(batches, active, split, states=states))
        states.update(close_pass(active, states))
        n_done += 1
    return states


def grow(
    wanted: Mapping[str, Request], tree: list[tuple[int, States]], leaf: tuple[int, States]
) -> list[tuple[int, States]]:
    """Return the tree with a further range; ranges of equal size are merged."""
    tree = [*tree, leaf]
    while len(tree) > 1 and tree[-1][0] == tree[-2][0]:
        (level, left), (_, right) = tree[-2:]
        tree[-2:] = [(level + 1, merge_states(wanted, left, right))]
    return tree


def fold(wanted: Mapping[str, Request], tree: list[tuple[int, States]]) -> States:
    """Return the merge of the remaining ranges, from the right: ``merge(r1, merge(r2, r3))``.

    The tree is emptied on the way, so that large states are freed once they are merged.
    """
    if not tree:
        return dict.fromkeys(wanted)
    states = tree.pop()[1]
    while tree:
        states = merge_states(wanted, tree.pop()[1], states)
    return states
