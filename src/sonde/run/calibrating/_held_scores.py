"""Scores of held-out rows, batch by batch, in memory that does not grow with their number."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.array_stream import ArrayStream
from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.hashing import rank_key, splitmix64
from sonde.core.passes import merge_pair
from sonde.core.requests import Task
from sonde.core.result import Scorer
from sonde.core.selection import JoinedRows
from sonde.core.stream import Stream
from sonde.run.instruments.entries import Key
from sonde.run.passes.progress import Bar
from sonde.run.scoring.batches import (
    Whole,
    class_columns,
    classes_of,
    in_order_of_arrival,
    needs_of,
)
from sonde.run.scoring.places import check_places
from sonde.stats import Calibrated, HeldScoresState, Kept
from sonde.stats.calibrated import EXAMPLE

WHO = (*EXAMPLE, "draw", "position")


def held_scores(
    tasks: Mapping[Key, Task],
    scorers: Mapping[Key, Scorer],
    stream: Stream,
    kept: Kept,
    bar: Bar,
    in_groups: bool = True,
) -> dict[Key, HeldScoresState]:
    """Return the kept scores of every detector: one for each group.

    Where an example has several rows that stand for themselves, the row of smallest draw is scored;
    where groups hold several usual examples, one of them, chosen by a hash of its place. Without
    ``in_groups`` every example stands for itself.
    """
    groups = _Groups.of(stream) if in_groups else None
    whole = Whole({name: _calibrated(task).reduction for name, task in tasks.items()})
    states: dict[Key, HeldScoresState | None] = dict.fromkeys(tasks)
    waiting: dict[Key, _Found] = {}

    def keep(name: Key, found: _Found) -> None:
        if len(found.score):
            columns = found.score[:, None], found.label, found.draw
            state = kept.statistic.observe(*columns)
            states[name] = merge_pair(kept.statistic, states[name], state)

    for batch in stream:
        whole.check(batch)
        check_places(batch, tasks, scorers)
        if groups is not None:
            groups.see(batch)
        for name, task in tasks.items():
            found = _of_batch(batch, task, scorers[name], kept, groups)
            if groups is not None:
                found, waiting[name] = groups.complete(found.after(waiting.get(name)))
            keep(name, found)
        bar.advance(len(batch))
    for name, found in waiting.items():
        keep(name, found)
    empty = [f"{word} at {site}" for (word, site), state in states.items() if state is None]
    if empty:
        raise InputError(f"calibrate: expected usual rows, got none for {empty[0]}.")
    return {name: state for name, state in states.items() if state is not None}


@dataclass(frozen=True)
class _Found:
    """Scores of usual examples; ``entry`` is the number of each in the planned order."""

    score: Float[Tensor, "example"]
    label: Int[Tensor, "example"]
    draw: Int[Tensor, "example"]
    entry: Int[Tensor, "example"]

    def at(self, index: Tensor) -> "_Found":
        """Return some of them."""
        return _Found(self.score[index], self.label[index], self.draw[index], self.entry[index])

    def after(self, other: "_Found | None") -> "_Found":
        """Return those of ``other`` and these."""
        if other is None:
            return self
        pairs = zip(_parts(other), _parts(self), strict=True)
        return _Found(*(torch.cat(pair) for pair in pairs))


def _parts(found: _Found) -> tuple[Tensor, ...]:
    return found.score, found.label, found.draw, found.entry


@dataclass(frozen=True)
class _Groups:
    """The groups of a stream; ``missing`` counts the examples of each that were not seen yet."""

    rank: Int[Tensor, "example"]
    member: Int[Tensor, "example"]
    missing: Int[Tensor, "group"]

    @classmethod
    def of(cls, stream: Stream) -> "_Groups | None":
        """Return the groups; None where each example is a group of its own."""
        ids = isinstance(stream, ArrayStream) and stream.who.given is not None
        if not stream.grouped and not ids:
            return None
        numbers: dict[bytes, int] = {}
        listed = [numbers.setdefault(key, len(numbers)) for key in stream.group_keys]
        places = np.arange(len(listed), dtype=np.uint64)
        drawn = splitmix64(places ^ np.uint64(stream.seed + 2**32))
        rank = np.argsort(np.argsort(drawn, kind="stable"), kind="stable")
        member = torch.tensor(listed, dtype=torch.int64)
        return cls(torch.from_numpy(rank), member, torch.bincount(member))

    def see(self, batch: Batch) -> None:
        """Count the examples of a batch as seen."""
        members = self.member[batch.order]
        self.missing.index_add_(0, members, torch.full_like(members, -1))

    def complete(self, found: _Found) -> tuple[_Found, _Found]:
        """Return the example that stands for each group, of groups that are over and of others."""
        rank, member = self.rank[found.entry], self.member[found.entry]
        first = found.at(_least(rank, rank, member))
        over = self.missing[self.member[first.entry]] == 0
        return first.at(over), first.at(~over)


def _calibrated(task: Task) -> Calibrated:
    assert isinstance(task.instrument, Calibrated)  # made so by the caller
    return task.instrument


def _of_batch(
    batch: Batch, task: Task, scorer: Scorer, kept: Kept, groups: _Groups | None
) -> _Found:
    """Return the score of each usual example."""
    instrument = _calibrated(task)
    needs, classes = needs_of(scorer), class_columns(kept.by)
    names = (*needs, *WHO, *classes)
    joined = JoinedRows.of(batch, task.keys, names, instrument.span)
    columns, rest = joined.columns[: len(needs)], joined.columns[len(needs) :]
    who, (draw, position, *further) = rest[: len(EXAMPLE)], rest[len(EXAMPLE) :]
    entry = torch.as_tensor(batch.order)[joined.example]
    if len(entry) == 0:
        return _Found(torch.zeros(0, dtype=torch.float64), entry, entry, entry)
    example = in_order_of_arrival(torch.column_stack(who))
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    rank = torch.zeros_like(entry) if groups is None else groups.rank[entry]
    of = torch.nonzero(_usual_rows(batch, task, joined)).flatten()
    of = row = of[_least(rank[of], draw[of], example[of])]
    scored = scores[row]
    if instrument.reduction is not None:
        made = scorer.reduced(scores, example, instrument.reduction, *columns)
        inside = torch.isin(made.example, example[of])
        scored, row = made.score[inside], made.row[inside]
    label = classes_of(kept.by, further, len(example))[row]
    first = _least(position, draw, example)[example[of]]
    return _Found(scored, label, draw[first], entry[of])


def _usual_rows(batch: Batch, task: Task, joined: JoinedRows) -> Bool[Tensor, "row"]:
    """Return which rows are not known as unusual."""
    mask = _calibrated(task).detector.usual.mask(batch, task.keys[0])
    if mask is None:
        return torch.ones(len(joined.example), dtype=torch.bool)
    return mask.cpu() if len(task.keys) == 1 else mask.cpu()[_rows_at(batch, task.keys[0], joined)]


def _rows_at(batch: Batch, key: str, joined: JoinedRows) -> Int[Tensor, "row"]:
    """Return which rows of one site the joined rows are."""
    pairs = zip(batch.example[key].tolist(), batch.position[key].tolist(), strict=True)
    at = {pair: i for i, pair in enumerate(pairs)}
    wanted = zip(joined.example.tolist(), joined.position.tolist(), strict=True)
    return torch.tensor([at[pair] for pair in wanted], dtype=torch.int64)


def _least(
    by: Int[Tensor, "row"], draw: Int[Tensor, "_row"], example: Int[Tensor, "_row"]
) -> Int[Tensor, "example"]:
    """Return of each example, in ascending order, the row that comes first by ``by``, then draw."""
    order = torch.argsort(rank_key(draw), stable=True)
    if by is not draw:
        order = order[torch.argsort(by[order], stable=True)]
    order = order[torch.argsort(example[order], stable=True)]
    fresh = torch.ones(len(order), dtype=torch.bool)
    fresh[1:] = example[order][1:] != example[order][:-1]
    return order[fresh]
