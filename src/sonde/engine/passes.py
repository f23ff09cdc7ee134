"""One pass over rows: the states of all requests, from the batches of a unit.

Rows are filtered and buffered once for each (sites, filter, part). Ledgers, workers and progress
live in ``sonde.run``.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sonde.core.autocast import without_autocast
from sonde.core.batch import Batch, Head
from sonde.core.errors import InputError, StateError
from sonde.core.finite import largest
from sonde.core.plan import Split
from sonde.core.state import State
from sonde.core.statistic import Learner, StateT, Statistic
from sonde.core.tensors import on_device
from sonde.engine.joining import joined_batches, rows_enough
from sonde.engine.requests import Request, States, Task, reads_of
from sonde.engine.selection import FiniteRows, row_indices

NARROW, TOGETHER = 64, 4096
"""Exact statistics take rows of at most width ``NARROW`` in calls of ``TOGETHER`` rows."""


class _Buffer:
    """Rows of one (sites, filter, part), buffered until they suffice for an ``observe``."""

    def __init__(self, readers: list[Request]) -> None:
        self.readers = readers
        needs = {n for r in readers for n in r.statistic.needs()}
        self.names, self.needs_head = sorted(needs - {"head"}), "head" in needs
        self.whole = readers[0].is_whole
        self.exact = _is_exact(readers[0])
        self.columns: dict[str, list[Tensor]] = defaultdict(list)
        self.head: Head | None = None
        self.n_rows = 0

    def add(self, rows: dict[str, Tensor], head: Head | None, n_rows: int) -> None:
        for name, column in rows.items():
            self.columns[name].append(column)
        self.head, self.n_rows = head, self.n_rows + n_rows

    def is_full(self) -> bool:
        if self.whole:
            return False
        x = self.columns.get("x")
        return self.n_rows >= rows_at_once(0 if x is None else x[0].shape[1], self.exact)

    def flush(self, states: States) -> None:
        if self.n_rows == 0:
            return
        joined = {n: c[0] if len(c) == 1 else torch.cat(c) for n, c in self.columns.items()}
        for request in self.readers:
            columns = [self.head if n == "head" else joined[n] for n in request.statistic.needs()]
            with without_autocast(*{column.device for column in joined.values()}):
                updated = _updated(request.statistic, states[request.id], columns, joined)
            states[request.id] = updated
        self.columns.clear()
        self.n_rows = 0


def _is_exact(request: Request) -> bool:
    return request.statistic.merging == "exact"


def rows_at_once(dim: int, exact: bool) -> int:
    """Return the number of rows of width ``dim`` in one ``observe``.

    Only exact statistics take more rows at once if rows are narrow: the results of other
    statistics, such as learners, depend on how rows are batched.
    """
    return TOGETHER if exact and dim <= NARROW else rows_enough(dim)


def _updated(
    statistic: Statistic[Any], old: State | None, columns: list[Any], joined: dict[str, Tensor]
) -> State:
    if old is None and isinstance(statistic, Learner):
        old = statistic.start(joined["x"].shape[1])
    return statistic.observe(*columns) if old is None else statistic.update(old, *columns)


def observe_unit(
    batches: Iterable[Batch],
    wanted: Mapping[str, Request],
    split: Split | None = None,
    counters: dict[str, int] | None = None,
    states: States | None = None,
) -> States:
    """Return the state of every request over the batches of one unit.

    Parameters
    ----------
    batches : iterable of Batch
        The batches of one unit, in order.
    wanted : mapping of id to Request
    split : Split or None
        Parts of the plan.
    counters : dict of str to int, optional
        Added to: ``rows|site``, ``nonfinite|site`` and ``sinks|site`` for each kind of rows, and
        ``examples``.
    states : dict, optional
        States that are updated with these rows; requests without one start empty.

    Returns
    -------
    dict of id to State or None
        None if a request saw no row.
    """
    out: States = {i: (states or {}).get(i) for i in wanted}
    counts = counters if counters is not None else {}
    by_buffer: dict[Any, list[Request]] = defaultdict(list)
    for request in wanted.values():
        by_buffer[request.buffer, _is_exact(request)].append(request)
    buffers = {name: _Buffer(readers) for name, readers in by_buffer.items()}
    for batch in joined_batches(batches):
        finite = FiniteRows(batch)
        _count(counts, batch, finite)
        held = None if split is None else split.is_held(batch.split_draw)
        for buffer in buffers.values():
            _fill(buffer, batch, finite, held)
            if buffer.is_full():
                buffer.flush(out)
    for buffer in buffers.values():
        buffer.flush(out)
    return out


def still_learning(
    wanted: Mapping[str, Request], states: States, n_done: int
) -> dict[str, Request]:
    """Return the learners that need another pass after ``n_done`` passes."""
    learning: dict[str, Request] = {}
    for i, request in wanted.items():
        learner, state = request.statistic, states.get(i)
        if not isinstance(learner, Learner) or n_done >= learner.n_passes():
            continue
        if n_done == 0 or (state is not None and not learner.is_trained(state)):
            learning[i] = request
    return learning


def close_pass(wanted: Mapping[str, Request], states: States) -> States:
    """Return the states of learners after the last row of a pass; None without rows."""
    closed: States = {}
    for i, request in wanted.items():
        learner, state = request.statistic, states[i]
        assert isinstance(learner, Learner)
        closed[i] = None if state is None else learner.close_pass(state)
    return closed


def _fill(buffer: _Buffer, batch: Batch, finite: FiniteRows, held: Tensor | None) -> None:
    request = buffer.readers[0]
    missing = [k for k in request.keys if k not in batch.rows]
    if missing:
        raise InputError(f"observe: the stream has no rows {missing}, only {list(batch.rows)}.")
    index = row_indices(request, batch, finite, held)
    n = len(batch.example[request.keys[0]]) if index is None else len(index[0])
    if n == 0:
        return
    rows: dict[str, Tensor] = {}
    for name in buffer.names:
        which = 1 if name == "y" else 0
        column = batch.column("x" if name == "y" else name, request.keys[which])
        column = column if index is None else column[index[which].to(column.device)]
        rows[name] = on_device(column, batch.rows[request.keys[0]].device)
    head = batch.column("head", request.keys[0]) if buffer.needs_head else None
    buffer.add(rows, head, n)


def _count(counts: dict[str, int], batch: Batch, finite: FiniteRows) -> None:
    counts["examples"] = counts.get("examples", 0) + len(batch)
    for key, x in batch.rows.items():
        counts[f"rows|{key}"] = counts.get(f"rows|{key}", 0) + len(x)
        counts[f"nonfinite|{key}"] = counts.get(f"nonfinite|{key}", 0) + finite.n_bad[key]
        if key in batch.sink:
            n_sinks = int(batch.sink[key].sum())
            counts[f"sinks|{key}"] = counts.get(f"sinks|{key}", 0) + n_sinks


def merge_states(wanted: Mapping[str, Request], a: States, b: States) -> States:
    """Return the merged states of two sets of rows; None is the empty state."""
    return {i: merge_pair(r.statistic, a.get(i), b.get(i)) for i, r in wanted.items()}


def merge_pair(statistic: Statistic[StateT], a: StateT | None, b: StateT | None) -> StateT | None:
    """Return the merge of two states; None is the empty state."""
    if a is None:
        return b
    if b is None:
        return a
    return statistic.merge(a, b)


def _advice(part: str) -> str:
    finite = (
        "that states are finite (no NaN, and nothing too large to square: above "
        f"{largest(torch.float32):g}, in float64 {largest(torch.float64):g})"
    )
    if part == "all":
        return f". Check that the data is not empty and {finite}."
    return (
        f" (part {part!r}). Check {finite} and that there are enough groups to "
        "split: rows of one group, and equal rows, stay in one part"
        + (
            ", and rows labelled as out of distribution are not used to calibrate."
            if part == "held"
            else "."
        )
    )


def states_of(task: Task, states: States, split: Split | None = None) -> dict[str, Any]:
    """Return the keyword arguments of ``task.instrument.result``.

    Raises
    ------
    StateError
        If a statistic saw no row.
    """
    arguments: dict[str, Any] = {}
    for name, targets in reads_of(task, split).items():
        values: list[State] = []
        for group in targets:
            state: State | None = None
            for request in group:
                state = merge_pair(request.statistic, state, states[request.id])
            if state is None:
                raise StateError(
                    f"{task.instrument.title}: no row to fit on at "
                    + " & ".join(group[0].keys)
                    + (
                        f". {group[0].where.advice}"
                        if group[0].where.advice
                        else _advice(group[0].part)
                    )
                )
            values.append(state)
        one_value = task.instrument.span == "one" or len(targets[0][0].keys) > 1
        arguments[name] = values[0] if one_value else tuple(values)
    return arguments
