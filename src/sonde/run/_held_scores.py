"""Scores of held-out rows, batch by batch, in memory that does not grow with their number."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Int
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
from sonde.run._places import check_places
from sonde.run.entries import Key
from sonde.run.progress import Bar
from sonde.run.score import Whole, class_columns, classes_of, in_order_of_arrival, needs_of
from sonde.stats import Calibrated, HeldScoresState, Kept
from sonde.stats.calibrated import EXAMPLE

WHO = (*EXAMPLE, "draw", "position")


def held_scores(
    tasks: Mapping[Key, Task], scorers: Mapping[Key, Scorer], stream: Stream, kept: Kept, bar: Bar
) -> dict[Key, HeldScoresState]:
    """Return the kept scores of every detector: one for each group.

    Where an example has several rows that stand for themselves, the row of smallest draw is scored;
    where groups hold several examples, one of them, chosen by a hash of its place.
    """
    chosen = _one_of_each_group(stream)
    hows = {name: _calibrated(task).reduction for name, task in tasks.items()}
    whole = Whole(hows)
    found: dict[Key, HeldScoresState | None] = dict.fromkeys(tasks)
    for batch in stream:
        whole.check(batch)
        check_places(batch, tasks, scorers)
        for name, task in tasks.items():
            held = _of_batch(batch, task, scorers[name], kept, chosen)
            state = None if held is None else kept.statistic.observe(*held)
            found[name] = merge_pair(kept.statistic, found[name], state)
        bar.advance(len(batch))
    empty = [f"{word} at {site}" for (word, site), state in found.items() if state is None]
    if empty:
        raise InputError(f"calibrate: expected usual rows, got none for {empty[0]}.")
    return {name: state for name, state in found.items() if state is not None}


def _calibrated(task: Task) -> Calibrated:
    assert isinstance(task.instrument, Calibrated)  # made so by the caller
    return task.instrument


def _of_batch(
    batch: Batch, task: Task, scorer: Scorer, kept: Kept, chosen: Bool[Tensor, "example"] | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return scores as a column, and the label and draw of each; None where no row counts."""
    instrument = _calibrated(task)
    needs, classes = needs_of(scorer), class_columns(kept.by)
    names = (*needs, *WHO, *classes)
    joined = JoinedRows.of(batch, task.keys, names, instrument.span)
    if len(joined.example) == 0:
        return None
    columns, rest = joined.columns[: len(needs)], joined.columns[len(needs) :]
    who, (draw, position, *further) = rest[: len(EXAMPLE)], rest[len(EXAMPLE) :]
    example = in_order_of_arrival(torch.column_stack(who))
    keep = _kept_rows(batch, task, joined, chosen)
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    first = _least(position, draw, example)
    if instrument.reduction is None:
        row = torch.nonzero(keep).flatten()
        row = row[_least(draw[row], draw[row], example[row])]
        scores = scores[row]
    else:
        made = scorer.reduced(scores, example, instrument.reduction, *columns)
        inside = torch.zeros(int(example.max()) + 1, dtype=torch.bool)
        inside[example[keep]] = True
        scores, row = made.score[inside[made.example]], made.row[inside[made.example]]
    if len(row) == 0:
        return None
    label = classes_of(kept.by, further, len(example))[row]
    return scores[:, None], label, draw[first[example[row]]]


def _kept_rows(
    batch: Batch, task: Task, joined: JoinedRows, chosen: Bool[Tensor, "example"] | None
) -> Bool[Tensor, "row"]:
    """Return the rows that are usual, and of examples that stand for their group."""
    keep = torch.ones(len(joined.example), dtype=torch.bool)
    if chosen is not None:
        keep &= chosen[torch.as_tensor(batch.order)][joined.example]
    mask = _calibrated(task).detector.usual.mask(batch, task.keys[0])
    if mask is None:
        return keep
    if len(task.keys) > 1:
        mask = mask.cpu()[_rows_at(batch, task.keys[0], joined)]
    return keep & mask.cpu()


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


def _one_of_each_group(stream: Stream) -> Bool[Tensor, "example"] | None:
    """Return which examples stand for their groups; None where each is a group of its own."""
    ids = isinstance(stream, ArrayStream) and stream.who.given is not None
    if not stream.grouped and not ids:
        return None
    keys = stream.group_keys
    drawn = splitmix64(np.arange(len(keys), dtype=np.uint64) ^ np.uint64(stream.seed + 2**32))
    chosen, seen = torch.zeros(len(keys), dtype=torch.bool), set[bytes]()
    for i in np.argsort(drawn, kind="stable").tolist():
        if keys[i] not in seen:
            seen.add(keys[i])
            chosen[i] = True
    return chosen
