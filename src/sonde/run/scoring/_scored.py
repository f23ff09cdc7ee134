"""Score held-out rows, one score per in-distribution example, here or in a worker."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.hashing import rank_key
from sonde.core.result import Scorer
from sonde.core.stream import Stream
from sonde.engine.requests import Task
from sonde.engine.selection import JoinedRows
from sonde.run.instruments.entries import Key
from sonde.run.passes.parts import PartJob
from sonde.run.scoring.batches import (
    Whole,
    class_columns,
    classes_of,
    in_order_of_arrival,
    needs_of,
)
from sonde.run.scoring.places import check_places
from sonde.stats import By, Calibrated
from sonde.stats.calibrated import EXAMPLE

WHO = (*EXAMPLE, "draw", "position")


@dataclass(frozen=True)
class Asked:
    """Inputs for scoring held-out rows.

    Parameters
    ----------
    tasks : dict of Key to Task
        Calibrated detectors.
    scorers : dict of Key to Scorer
    by : {"label", "predicted"} or None
        Where the class of an example comes from.
    rank : Tensor or None
        If groups hold several examples: the example of lowest rank stands for its group.
    labels : Tensor or None
        Labels that say which examples are unusual, if the stream's own labels are the values of
        another column.
    """

    tasks: Mapping[Key, Task]
    scorers: Mapping[Key, Scorer]
    by: By | None
    rank: Int[Tensor, "example"] | None
    labels: Int[Tensor, "example"] | None = None


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of one batch by detector; ``order`` holds the index of each of its examples."""

    order: Int[Tensor, "example"]
    found: dict[Key, "Found"]

    @classmethod
    def joined(cls, batches: "Sequence[ScoredBatch]") -> "list[ScoredBatch]":
        """Return the batches joined into one batch; an empty list stays empty."""
        if not batches:
            return []
        order = torch.cat([batch.order for batch in batches])
        names = batches[0].found
        return [cls(order, {n: Found.joined([b.found[n] for b in batches]) for n in names})]


@dataclass(frozen=True)
class ScoredJob(PartJob):
    """Score a part of the held-out rows."""

    asked: Asked

    def of_part(self, part: Stream) -> list[ScoredBatch]:
        """Return the scores of all batches joined, to send few tensors to the driver."""
        return ScoredBatch.joined(list(scored_batches(self.asked, part)))


def scored_batches(asked: Asked, stream: Stream) -> Iterator[ScoredBatch]:
    """Yield the scores of each batch of a stream.

    If the rows of an example are not reduced to one score, the row of smallest draw is scored.
    """
    whole = Whole({name: _calibrated(task).reduction for name, task in asked.tasks.items()})
    for batch in stream:
        whole.check(batch)
        check_places(batch, asked.tasks, asked.scorers)
        by_name = {
            name: _of_batch(batch, task, asked.scorers[name], asked)
            for name, task in asked.tasks.items()
        }
        yield ScoredBatch(torch.as_tensor(batch.order), by_name)


@dataclass(frozen=True)
class Found:
    """Scores of in-distribution examples; ``entry`` is their index in the planned order."""

    score: Float[Tensor, "example"]
    label: Int[Tensor, "example"]
    draw: Int[Tensor, "example"]
    entry: Int[Tensor, "example"]
    n_rows: Int[Tensor, "example"]

    def at(self, index: Tensor) -> "Found":
        """Return the examples at the given positions."""
        return Found(*(part[index] for part in _parts(self)))

    def after(self, other: "Found | None") -> "Found":
        """Return these examples followed by the examples of ``other``."""
        return self if other is None else Found.joined([other, self])

    @classmethod
    def joined(cls, several: "Sequence[Found]") -> "Found":
        """Return several sets of scores, joined in order."""
        return cls(*map(torch.cat, zip(*map(_parts, several), strict=True)))


def _parts(found: Found) -> tuple[Tensor, ...]:
    return found.score, found.label, found.draw, found.entry, found.n_rows


def _calibrated(task: Task) -> Calibrated:
    assert isinstance(task.instrument, Calibrated)  # made so by the caller
    return task.instrument


def _of_batch(batch: Batch, task: Task, scorer: Scorer, asked: Asked) -> Found:
    """Return the score of each in-distribution example."""
    instrument = _calibrated(task)
    needs, classes = needs_of(scorer), class_columns(asked.by)
    names = (*needs, *WHO, *classes)
    joined = JoinedRows.of(batch, task.keys, names, instrument.span)
    columns, rest = joined.columns[: len(needs)], joined.columns[len(needs) :]
    who, (draw, position, *further) = rest[: len(EXAMPLE)], rest[len(EXAMPLE) :]
    entry = torch.as_tensor(batch.order)[joined.example]
    if len(entry) == 0:
        return Found(torch.zeros(0, dtype=torch.float64), entry, entry, entry, entry)
    example = in_order_of_arrival(torch.column_stack(who))
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    rank = torch.zeros_like(entry) if asked.rank is None else asked.rank[entry]
    labelled = batch
    if asked.labels is not None:
        labelled = replace(batch, label=asked.labels[torch.as_tensor(batch.order)])
    of = torch.nonzero(_usual_rows(labelled, task, joined)).flatten()
    of = row = of[least(rank[of], draw[of], example[of])]
    scored = scores[row]
    if instrument.reduction is not None:
        reduced = scorer.reduced(scores, example, instrument.reduction, *columns)
        inside = torch.isin(reduced.example, example[of])
        scored, row = reduced.score[inside], reduced.row[inside]
    label = classes_of(asked.by, further, len(example))[row]
    first = least(position, draw, example)[example[of]]
    return Found(scored, label, draw[first], entry[of], torch.bincount(example)[example[of]])


def _usual_rows(batch: Batch, task: Task, joined: JoinedRows) -> Bool[Tensor, "row"]:
    """Return a mask of the rows that are not labelled as outliers."""
    mask = _calibrated(task).detector.usual.mask(batch, task.keys[0])
    if mask is None:
        return torch.ones(len(joined.example), dtype=torch.bool)
    is_whole = len(mask) == len(joined.example)
    return mask.cpu() if is_whole else mask.cpu()[_rows_at(batch, task.keys[0], joined)]


def _rows_at(batch: Batch, key: str, joined: JoinedRows) -> Int[Tensor, "row"]:
    """Return the index of each joined row among the rows of a site."""
    pairs = zip(batch.example[key].tolist(), batch.position[key].tolist(), strict=True)
    at = {pair: i for i, pair in enumerate(pairs)}
    wanted = zip(joined.example.tolist(), joined.position.tolist(), strict=True)
    return torch.tensor([at[pair] for pair in wanted], dtype=torch.int64)


def least(
    by: Int[Tensor, "row"], draw: Int[Tensor, "_row"], example: Int[Tensor, "_row"]
) -> Int[Tensor, "example"]:
    """Return each example's row with the least ``by``, ascending; ties by sampling key."""
    order = torch.argsort(rank_key(draw), stable=True)
    if by is not draw:
        order = order[torch.argsort(by[order], stable=True)]
    order = order[torch.argsort(example[order], stable=True)]
    fresh = torch.ones(len(order), dtype=torch.bool)
    fresh[1:] = example[order][1:] != example[order][:-1]
    return order[fresh]
