"""One pass over rows for many instruments: what is computed, once, and how it becomes results.

``requests`` lists the distinct (statistic, sites, filter, part) of a set of tasks. ``observe_unit``
computes their states over the batches of one unit, filtering and buffering rows once for each
(sites, filter, part). Ledgers, workers and progress live in ``sonde.run``.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sonde.core.batch import Batch, Head
from sonde.core.errorbars import SampleRows, Term, result_with_error
from sonde.core.errors import InputError, StateError
from sonde.core.hashing import rank_key
from sonde.core.instrument import SAMPLE, Detector, Instrument, Read, Where
from sonde.core.plan import UNIT_SIZE, Part, Split, unit_bounds
from sonde.core.result import Result
from sonde.core.state import State, digest
from sonde.core.statistic import Learner, Statistic
from sonde.core.stream import ARRAY_BATCH, Stream

States = dict[str, State | None]

BUFFER_ROWS = 2048
BUFFER_ROWS_WIDE = 512
WIDE = 256


@dataclass(frozen=True)
class Task:
    """An instrument at the rows that one of its results is about."""

    instrument: Instrument
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One state to compute: a statistic, the rows it sees, and their part of the plan."""

    statistic: Statistic[Any]
    keys: tuple[str, ...]
    where: Where
    part: Part
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest((self.statistic, self.where)))

    @property
    def id(self) -> str:
        """The name of the state in every dictionary and file."""
        return f"{self.digest}|{'&'.join(self.keys)}|{self.part}"

    @property
    def buffer(self) -> tuple[tuple[str, ...], str, Part, bool]:
        """What shares one row buffer."""
        return self.keys, digest(self.where), self.part, self.statistic.whole_groups


def reads_of(task: Task, split: Split | None) -> dict[str, list[list[Request]]]:
    """Return, for each parameter of ``result``, for each site, the requests whose states make it.

    Two requests are the parts ``fit`` and ``held`` of all rows; they are merged.
    """
    plan: dict[str, list[list[Request]]] = {}
    for name, read in task.instrument.all_reads().items():
        targets = (
            [task.keys]
            if read.statistic.span == "pair" or task.instrument.span == "one"
            else [(key,) for key in task.keys]
        )
        plan[name] = [
            [Request(read.statistic, keys, read.where, part) for part in _parts(read, split)]
            for keys in targets
        ]
    return plan


def _parts(read: Read, split: Split | None) -> tuple[Part, ...]:
    if split is None:
        return ("all",)
    if read.part in (None, "all"):
        return ("fit", "held")
    return (read.part,)


def requests(tasks: Iterable[Task], split: Split | None = None) -> dict[str, Request]:
    """Return every distinct request of the tasks by id, in a fixed order."""
    found: dict[str, Request] = {}
    for task in tasks:
        for groups in reads_of(task, split).values():
            for group in groups:
                found.update((request.id, request) for request in group)
    return dict(sorted(found.items()))


class _Buffer:
    """Rows of one (sites, filter, part), waiting until there are enough for one ``observe``."""

    def __init__(self, readers: list[Request]) -> None:
        self.readers = readers
        self.names = sorted({n for r in readers for n in r.statistic.needs()} - {"head"})
        self.whole = readers[0].statistic.whole_groups
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
        wide = x is not None and x[0].shape[1] > WIDE
        return self.n_rows >= (BUFFER_ROWS_WIDE if wide else BUFFER_ROWS)

    def flush(self, states: States) -> None:
        if self.n_rows == 0:
            return
        joined = {n: c[0] if len(c) == 1 else torch.cat(c) for n, c in self.columns.items()}
        for request in self.readers:
            columns = [self.head if n == "head" else joined[n] for n in request.statistic.needs()]
            states[request.id] = _updated(request.statistic, states[request.id], columns, joined)
        self.columns.clear()
        self.n_rows = 0


def _updated(
    statistic: Statistic[Any], old: State | None, columns: list[Any], joined: dict[str, Tensor]
) -> State:
    if old is None and isinstance(statistic, Learner):
        old = statistic.start(joined["x"].shape[1])
    return statistic.observe(*columns) if old is None else statistic.update(old, *columns)


class FiniteRows:
    """Which rows of a batch are finite at a site and at every earlier one, and how many are not.

    Rows of one layout are dropped one by one. A site with another layout drops the examples of rows
    that were not finite before it.
    """

    def __init__(self, batch: Batch) -> None:
        self._kept: dict[str, Tensor | None] = {}
        self.n_bad: dict[str, int] = {}
        bad_rows: dict[tuple[int, int], Tensor] = {}
        bad_examples: dict[tuple[int, int], Tensor] = {}
        for key, x in batch.rows.items():
            example = batch.example[key]
            layout = (id(example), id(batch.position[key]))
            own = None if is_finite(x) else ~torch.isfinite(x).all(dim=1).cpu()
            self.n_bad[key] = 0 if own is None else int(own.sum())
            if own is not None:
                bad_rows[layout] = own | bad_rows.get(layout, torch.zeros_like(own))
                members = torch.zeros(len(batch), dtype=torch.bool)
                members[example[own]] = True
                bad_examples[layout] = members | bad_examples.get(layout, torch.zeros_like(members))
            inherited = [m[example] for other, m in bad_examples.items() if other != layout]
            present = [*inherited, *([bad_rows[layout]] if layout in bad_rows else [])]
            self._kept[key] = ~torch.stack(present).any(dim=0) if present else None

    def kept(self, key: str) -> Tensor | None:
        """Return the mask of rows to keep, or None for all."""
        return self._kept[key]


def _count(counts: dict[str, int], batch: Batch, finite: FiniteRows) -> None:
    counts["examples"] = counts.get("examples", 0) + len(batch)
    for key, x in batch.rows.items():
        counts[f"rows|{key}"] = counts.get(f"rows|{key}", 0) + len(x)
        counts[f"nonfinite|{key}"] = counts.get(f"nonfinite|{key}", 0) + finite.n_bad[key]


def is_finite(x: Tensor) -> bool:
    """Return whether no entry is NaN or infinite; one sum where all is well."""
    if bool(torch.isfinite(x.sum(dtype=torch.float64 if x.device.type != "mps" else None))):
        return True
    return bool(torch.isfinite(x).all())


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
        Added to: ``rows|site`` and ``nonfinite|site`` for each kind of rows, and ``examples``.
    states : dict, optional
        Where learners continue from; all other statistics begin anew.

    Returns
    -------
    dict of id to State or None
        None where a request saw no row.
    """
    out: States = {i: (states or {}).get(i) for i in wanted}
    counts = counters if counters is not None else {}
    by_buffer: dict[Any, list[Request]] = defaultdict(list)
    for request in wanted.values():
        by_buffer[request.buffer].append(request)
    buffers = {name: _Buffer(readers) for name, readers in by_buffer.items()}
    for batch in batches:
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


def _fill(buffer: _Buffer, batch: Batch, finite: FiniteRows, held: Tensor | None) -> None:
    request = buffer.readers[0]
    missing = [k for k in request.keys if k not in batch.rows]
    if missing:
        raise InputError(f"observe: the stream has no rows {missing}, only {list(batch.rows)}.")
    index = _row_indices(request, batch, finite, held)
    n = len(batch.example[request.keys[0]]) if index is None else len(index[0])
    if n == 0:
        return
    rows: dict[str, Tensor] = {}
    for name in buffer.names:
        which = 1 if name == "y" else 0
        column = batch.column("x" if name == "y" else name, request.keys[which])
        rows[name] = column if index is None else column[index[which].to(column.device)]
    needs_head = any("head" in r.statistic.needs() for r in buffer.readers)
    head = batch.column("head", request.keys[0]) if needs_head else None
    buffer.add(rows, head, n)


def _row_indices(
    request: Request, batch: Batch, finite: FiniteRows, held: Tensor | None
) -> list[Tensor] | None:
    """Return, for each site of the request, the rows to take (joined for pairs); None takes all."""
    masks: list[Tensor | None] = []
    for key in request.keys:
        parts = [finite.kept(key), request.where.mask(batch, key)]
        if held is not None and request.part != "all":
            mine = held if request.part == "held" else ~held
            parts.append(mine[batch.example[key]])
        present = [p for p in parts if p is not None]
        masks.append(torch.stack(present).all(dim=0) if present else None)
    if len(request.keys) == 1:
        return None if masks[0] is None else [torch.nonzero(masks[0]).flatten()]
    return _joined(request.keys, batch, masks)


def _joined(keys: Sequence[str], batch: Batch, masks: list[Tensor | None]) -> list[Tensor] | None:
    first, second = keys
    same = (
        batch.example[first] is batch.example[second]
        and batch.position[first] is batch.position[second]
    )
    if same:
        present = [m for m in masks if m is not None]
        if not present:
            return None
        rows = torch.nonzero(torch.stack(present).all(dim=0)).flatten()
        return [rows, rows]
    names: list[dict[tuple[int, int], int]] = []
    for key, mask in zip(keys, masks, strict=True):
        example, position = batch.example[key].tolist(), batch.position[key].tolist()
        kept = range(len(example)) if mask is None else torch.nonzero(mask).flatten().tolist()
        names.append({(example[i], position[i]): i for i in kept})
    shared = sorted(names[0].keys() & names[1].keys())
    return [torch.tensor([n[s] for s in shared], dtype=torch.int64) for n in names]


def merge_states(wanted: Mapping[str, Request], a: States, b: States) -> States:
    """Return the states of both sets of rows; an empty one (None) leaves the other as it is."""
    return {i: merge_pair(r.statistic, a.get(i), b.get(i)) for i, r in wanted.items()}


def merge_pair(statistic: Statistic[Any], a: State | None, b: State | None) -> State | None:
    """Return the merge of two states of which either may be empty."""
    if a is None:
        return b
    if b is None:
        return a
    return statistic.merge(a, b)


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
                    f"{type(task.instrument).__name__}: no row to fit on at "
                    + " & ".join(group[0].keys)
                    + ("" if group[0].part == "all" else f" (part {group[0].part!r})")
                    + ". Check that the data is not empty and that states are finite."
                )
            values.append(state)
        one_value = task.instrument.span == "one" or len(targets[0][0].keys) > 1
        arguments[name] = values[0] if one_value else tuple(values)
    return arguments


def fit_arrays(instrument: Instrument, x: Any, **columns: Any) -> Result:
    """Return the last result of an instrument fitted on plain arrays, with its standard error."""
    stream = Stream.of(x, **columns)
    if len(stream) == 0:
        raise InputError(f"{type(instrument).__name__}.fit: expected at least one row, got none.")
    keys = tuple(s.key for s in stream.schema)
    if instrument.span == "one" and len(keys) > 1:
        raise InputError(
            f"{type(instrument).__name__}.fit: expected one array, got {len(keys)}. "
            "Fit each site by itself, or use sonde.fit on a stream."
        )
    following: Instrument | None = instrument
    while following is not None:
        task, instrument = Task(following, keys), following
        states = observe_stream(stream, requests([task]), unit_size=ARRAY_BATCH)
        # A scorer's value is no estimate that needs an error: its scores are calibrated instead.
        scores = isinstance(following, Detector)
        sample = None if scores else array_sample(stream, terms_of(task))
        result = result_with_error(following, states_of(task, states), terms_of(task), sample)
        following = instrument.then(result)
    return result


def terms_of(task: Task, split: Split | None = None) -> list[Term]:
    """Return the states that a task's result reads, for its error bar."""
    terms: list[Term] = []
    for name, targets in reads_of(task, split).items():
        first = targets[0][0]
        one_value = task.instrument.span == "one" or len(first.keys) > 1
        terms += [
            Term(name, None if one_value else i, group[0].statistic, group[0].keys)
            for i, group in enumerate(targets)
        ]
    return terms


def array_sample(stream: Stream, terms: Sequence[Term]) -> SampleRows | None:
    """Return the rows of the groups of smallest draw, about ``SAMPLE`` of them, of plain arrays."""
    names = {n for t in terms for n in t.statistic.needs()} - {"y", "head"}
    if any(t.statistic.influence.__func__ is Statistic.influence for t in terms):  # type: ignore[attr-defined]
        return None
    batches = list(stream.batches(0, len(stream)))
    keys = sorted({k for t in terms for k in t.keys})
    group = torch.cat([b.column("group", keys[0]) for b in batches])
    draw = torch.cat([b.column("group_draw", keys[0]) for b in batches])
    finite = torch.stack(
        [torch.cat([torch.isfinite(b.rows[k]).all(dim=1) for b in batches]) for k in keys]
    ).all(dim=0)
    order = torch.argsort(rank_key(draw), stable=True)
    order = order[finite[order]]
    if len(order) > SAMPLE:
        cut = int(torch.searchsorted(rank_key(draw[order]), rank_key(draw[order[SAMPLE]]).clone()))
        order = order[: cut or SAMPLE]
    columns = {
        k: {n: torch.cat([b.column(n, k) for b in batches])[order] for n in names | {"x"}}
        for k in keys
    }
    return SampleRows(columns, group[order], len(torch.unique(group[finite])))


def observe_stream(
    stream: Stream,
    wanted: Mapping[str, Request],
    split: Split | None = None,
    unit_size: int = UNIT_SIZE,
) -> States:
    """Return the states over a whole stream, folded unit by unit in memory.

    Learners walk units of the planned size in order; all else is merged in the plan's tree.
    """
    if any(isinstance(r.statistic, Learner) for r in wanted.values()):
        unit_size = UNIT_SIZE
    if stream.grouped:
        bounds = unit_bounds(stream.group_keys, unit_size)
    else:
        bounds = [*range(0, len(stream), unit_size), len(stream)]
    tree: list[tuple[int, States]] = []
    chain = {i: r for i, r in wanted.items() if isinstance(r.statistic, Learner)}
    rest = {i: r for i, r in wanted.items() if i not in chain}
    learned: States = dict.fromkeys(chain)
    for start, stop in itertools.pairwise(bounds):
        batches = (
            list(stream.batches(start, stop)) if chain and rest else stream.batches(start, stop)
        )
        if chain:
            learned = observe_unit(batches, chain, split, states=learned)
        if rest:
            tree = grow(rest, tree, (0, observe_unit(batches, rest, split)))
    return {**fold(rest, tree), **learned}


def grow(
    wanted: Mapping[str, Request], tree: list[tuple[int, States]], leaf: tuple[int, States]
) -> list[tuple[int, States]]:
    """Return the waiting ranges after one more: equal neighbours merge, as in a binary counter."""
    tree = [*tree, leaf]
    while len(tree) > 1 and tree[-1][0] == tree[-2][0]:
        (level, left), (_, right) = tree[-2:]
        tree[-2:] = [(level + 1, merge_states(wanted, left, right))]
    return tree


def fold(wanted: Mapping[str, Request], tree: Sequence[tuple[int, States]]) -> States:
    """Return the merge of what is left, from the right: ``merge(r1, merge(r2, r3))``."""
    if not tree:
        return dict.fromkeys(wanted)
    states = tree[-1][1]
    for _, left in reversed(tree[:-1]):
        states = merge_states(wanted, left, states)
    return states
