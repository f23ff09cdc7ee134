"""Score rows in batches: a table for each batch, with the lines of one detector after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector, score_needs
from sonde.core.reduction import AUTO, OWN, Reduced, reduction_at
from sonde.core.result import Scorer
from sonde.core.stream import Stream
from sonde.engine.classes import with_classes
from sonde.engine.requests import Task
from sonde.engine.selection import JoinedRows
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.header import require_same_model
from sonde.run.instruments.entries import Key, inner_of
from sonde.run.scoring.loud_parts import COLUMNS, RecordLine, layers_of, positions_of, units_of
from sonde.run.scoring.places import check_places
from sonde.stats import Calibrated, CalibratedScorer
from sonde.stats.calibrated import EXAMPLE, Lengths

FALLS_WITH_ROWS = ("mean", OWN)


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("position", pa.int64()),
        ("site", pa.string()),
        ("instrument", pa.string()),
        ("score", pa.float64()),
        ("p", pa.float64()),
    ]
)
EXPLAINED = pa.schema([*SCHEMA, *COLUMNS])
ORDER = "_order"


def schema_of_parts(explain: int) -> pa.Schema:
    """Return the columns of the tables of batches: of the whole table, and the planned order."""
    return pa.schema([*(EXPLAINED if explain else SCHEMA), (ORDER, pa.int64())])


def check_scoring(fitted: Fitted, stream: Stream, explain: int) -> None:
    """Raise if a bundle, data or options cannot give scores.

    Raises
    ------
    StateError
        If the bundle holds no detector, or was fitted for another model.
    InputError
        If there is nothing to score.
    """
    if not fitted.scorers:
        raise StateError("score: the bundle holds no detector. Fit one, e.g. mahalanobis.")
    if len(stream) == 0:
        raise InputError("score: expected at least one example, got none. The data is empty.")
    if explain < 0:
        raise InputError(f"score: expected explain of at least 0, got {explain}.")
    require_same_model(fitted.header, stream)


def score_batches(
    fitted: Fitted, stream: Stream, reduction: str = AUTO, explain: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield the table of ``score`` batch by batch; memory does not grow with the data."""
    check_scoring(fitted, stream, explain)
    stream = with_classes(stream, fitted.label_names)
    tasks = dict(zip(fitted.names, fitted.tasks, strict=True))
    hows = {name: reduction_of(fitted, tasks[name], reduction) for name in fitted.scorers}
    whole, scorers, source = Whole(hows), fitted.scorers, stream.source_rows
    for batch in stream:
        whole.check(batch)
        check_places(batch, tasks, scorers)
        columns_of = {
            name: record(
                batch,
                name,
                scorer,
                scored_rows(batch, tasks[name], scorer, hows[name], bool(explain)),
                explain,
                source,
            )
            for name, scorer in scorers.items()
        }
        if explain:
            columns_of = with_layers(columns_of, hows, scorers, explain)
        for columns in columns_of.values():
            yield pa.RecordBatch.from_pydict(columns, schema=schema_of_parts(explain))


def with_layers(
    found: dict[Key, dict[str, Any]],
    hows: dict[Key, str | None],
    scorers: dict[Key, Scorer],
    n: int,
) -> dict[Key, dict[str, Any]]:
    """Return the columns of a batch with its most outlying layers."""
    lines = {}
    for name, columns in found.items():
        last = columns["position" if hows[name] is None else "_piece"]
        where = zip(columns["id"], columns["_occurrence"], last, strict=True)
        values = zip(where, columns["score"], columns["p"], strict=True)
        lines[name] = [RecordLine(*value) for value in values]
    layers = layers_of(lines, scorers, n)
    wanted = set(schema_of_parts(explain=1).names)
    return {
        name: {k: v for k, v in (columns | layers[name]).items() if k in wanted}
        for name, columns in found.items()
    }


class Whole:
    """Check that every example of plain arrays has all its rows in one batch."""

    def __init__(self, hows: dict[Key, str | None]) -> None:
        self.reduces = any(how is not None for how in hows.values())
        self.seen: set[tuple[str, int]] = set()

    def check(self, batch: Batch) -> None:
        """Raise if examples of a batch have rows in an earlier batch."""
        if not self.reduces or not batch.scattered:
            return
        here = set(zip(batch.ids, torch.as_tensor(batch.occurrence).tolist(), strict=True))
        if not here.isdisjoint(self.seen):
            raise InputError(
                f"score: the rows of {min(here & self.seen)[0]} are not adjacent, or do not fit "
                "into one batch. Sort the rows by their ids, or score them as rows."
            )
        self.seen |= here


@dataclass(frozen=True)
class ScoredRows:
    """Scores of one detector for a batch, per row or per example.

    Parameters
    ----------
    score : Tensor
    example, position : Tensor
        Index into the batch of the example of each score, and where in it the score was found.
    p : list of float or None
        Conformal p-values; None if unknown.
    row : Tensor
        The row that each score belongs to.
    every : Tensor
        The scores of all rows.
    """

    score: Float[Tensor, "score"]
    example: Int[Tensor, "_score"]
    position: Int[Tensor, "_score"]
    p: list[float | None]
    row: Int[Tensor, "_score"]
    every: Float[Tensor, "row"]
    needed: dict[str, Any]
    who: tuple[Tensor, ...]
    members: Int[Tensor, "_row"]
    at: Int[Tensor, "_row"]

    def first(self, n: int) -> "ScoredRows":
        """Return the scores of the first ``n`` examples of the batch."""
        is_first = self.example < n
        n_rows = int(is_first.sum())
        if n_rows == len(self.example):
            return self
        kept: Any = slice(n_rows)  # copies come last, and a slice costs less than an index
        if not bool(is_first[kept].all()):
            kept = torch.nonzero(is_first).flatten()
        p = self.p[kept] if isinstance(kept, slice) else [self.p[i] for i in kept.tolist()]
        chosen = {c: getattr(self, c)[kept] for c in ("score", "example", "position", "row")}
        return replace(self, p=p, **chosen)

    @classmethod
    def joined(cls, parts: Sequence["ScoredRows"]) -> "ScoredRows":
        """Return scores of batches that hold an example each, as scores of the whole batch."""
        starts = np.cumsum([0, *(len(x.every) for x in parts[:-1])]).tolist()
        # rows of copies that fill a batch are members of examples that ``first`` left out
        firsts = np.cumsum([0, *(int(x.members.max()) + 1 for x in parts[:-1])]).tolist()
        same = {
            c: torch.cat([getattr(x, c) for x in parts])
            for c in ("score", "position", "every", "at")
        }
        return cls(
            **same,
            example=torch.cat([x.example + i for i, x in enumerate(parts)]),
            row=torch.cat([x.row + start for x, start in zip(parts, starts, strict=True)]),
            members=torch.cat([x.members + i for x, i in zip(parts, firsts, strict=True)]),
            p=[value for x in parts for value in x.p],
            needed={c: torch.cat([x.needed[c] for x in parts]) for c in parts[0].needed},
            who=tuple(torch.cat(columns) for columns in zip(*(x.who for x in parts), strict=True)),
        )


def scored_rows(
    batch: Batch, task: Task, scorer: Scorer, how: str | None, has_who: bool = False
) -> ScoredRows:
    """Return the scores and p-values of one detector for a batch.

    ``has_who`` asks for the columns that name the example of each row also where nothing is
    reduced.
    """
    needs = needs_of(scorer)
    whose = () if how is None and not has_who else EXAMPLE
    by = scorer.by if isinstance(scorer, CalibratedScorer) else None
    names = (*needs, *whose, *class_columns(by))
    joined = JoinedRows.of(batch, task.keys, names, task.instrument.span)
    columns, rest = joined.columns[: len(needs)], joined.columns[len(needs) :]
    who, classes = rest[: len(whose)], rest[len(whose) :]
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    of_row, position = joined.example, joined.position
    label, row, every = classes_of(by, classes, len(of_row)), torch.arange(len(of_row)), scores
    members = in_order_of_arrival(torch.column_stack(who)) if whose and len(of_row) else of_row
    reduced = None
    if how is not None:
        reduced = scorer.reduced(scores, members, how, *columns)
        row, scores, label = reduced.row, reduced.score, label[reduced.row]
    p = _p_values(scorer, scores, how, label, (reduced, every, members))
    needed = dict(zip(needs, columns, strict=True))
    place = of_row[row], position[row], p, row
    return ScoredRows(scores, *place, every, needed, who, members, position)


def record(
    batch: Batch,
    name: Key,
    scorer: Scorer,
    found: ScoredRows,
    explain: int = 0,
    source: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the table columns for one detector and batch."""
    method, key = name
    named, row = found.example.tolist(), found.row
    columns = {
        "id": [batch.ids[i] for i in named],
        "row": [None] * len(named)
        if source is None
        else source[batch.order[named].numpy()].tolist(),
        "position": found.position.tolist(),
        "site": [key] * len(named),
        "instrument": [method] * len(named),
        "score": found.score.tolist(),
        "p": found.p,
        ORDER: batch.order[named].tolist(),
    }
    if explain:
        who = found.who
        columns |= {f"_{c}": who[EXAMPLE.index(c)][row].tolist() for c in ("occurrence", "piece")}
        columns |= units_of(scorer, found.needed, row, explain)
        columns |= positions_of(found.every, found.members, found.at, row, explain)
    return columns


def in_order_of_arrival(who: Int[Tensor, "row 4"]) -> Int[Tensor, "row"]:
    """Return each row's number, where distinct rows are numbered in order of first appearance."""
    which = torch.unique(who, dim=0, return_inverse=True)[1]
    first = torch.full((int(which.max()) + 1,), len(who))
    first.scatter_reduce_(0, which, torch.arange(len(who)), "amin")
    return first.argsort().argsort()[which]


def _p_values(
    scorer: Scorer,
    scores: Tensor,
    how: str | None,
    label: Int[Tensor, "row"],
    of_rows: tuple[Reduced | None, Tensor, Tensor],
) -> list[float | None]:
    if not isinstance(scorer, CalibratedScorer) or scorer.reduction != how:
        return [None] * len(scores)
    reduced, every, example = of_rows
    if reduced is None or how is None:
        return scorer.p_value(scores, label).tolist()
    return p_of_examples(scorer, reduced, label, every, example, how).tolist()


def class_columns(by: str | None) -> tuple[str, ...]:
    """Return the name of the column that holds each row's class."""
    return {None: (), "label": ("label",), "predicted": ("logits",)}[by]


def classes_of(by: str | None, columns: Sequence[Tensor], n: int) -> Int[Tensor, "row"]:
    """Return the class of each of ``n`` rows; -1 if the detector uses no classes."""
    if by is None:
        return torch.full((n,), -1)
    return (columns[0] if by == "label" else columns[0].argmax(dim=1)).cpu()


def needs_of(scorer: Scorer) -> tuple[str, ...]:
    """Return the columns that a scorer needs, calibrated or not."""
    return score_needs(scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer)


def reduction_of(fitted: Fitted, task: Task, asked: str = AUTO) -> str | None:
    """Return the reduction from scores of rows to a score per example, or None to keep rows."""
    if asked == AUTO and isinstance(task.instrument, Calibrated):
        return task.instrument.reduction
    reducers = {s["text"]: s["reducer"] for s in fitted.header["sites"]}
    inner = inner_of(task.instrument)
    own = isinstance(inner, Detector) and inner.reduces
    return reduction_at([reducers[key] for key in task.keys], asked, own)


def p_of_examples(
    scorer: CalibratedScorer,
    found: Reduced,
    label: Int[Tensor, "example"],
    scores: Float[Tensor, "row"],
    example: Int[Tensor, "_row"],
    how: str,
) -> Float[Tensor, "example"]:
    """Return the p-value of each example's score.

    The largest of many scores is larger than that of few. An example with more rows than any that
    calibrated is therefore cut into parts of their mean length, and its p-value is the smallest of
    its parts times their number (Bonferroni): the rate of false alarms holds, whatever the parts
    have in common. A mean of scores does not grow with the rows and is compared as it is.
    """
    p, lengths = scorer.p_value(found.score, label), scorer.lengths
    if lengths is None or how in FALLS_WITH_ROWS:
        return p
    n_rows = torch.bincount(example)
    long = n_rows > lengths.longest
    if not bool(long.any()):
        return p
    taken = torch.nonzero(long[example]).flatten()
    part, owner, n_parts = parts_of(example[taken], lengths)
    pieces = scorer.reduced(scores[taken], part, how)
    place = torch.full((len(n_rows),), -1)
    place[found.example] = torch.arange(len(found.example))
    at = place[owner]
    least = torch.ones_like(p).scatter_reduce(
        0, at, scorer.p_value(pieces.score, label[at]), "amin", include_self=True
    )
    return torch.where(long[found.example], (least * n_parts[found.example]).clamp(max=1.0), p)


def parts_of(
    example: Int[Tensor, "row"], lengths: Lengths
) -> tuple[Int[Tensor, "_row"], Int[Tensor, "part"], Int[Tensor, "example"]]:
    """Return the part of each row, the example of each part, and each example's number of parts.

    Parts hold consecutive rows, nearly as many each, and at most the mean length.
    """
    n_rows = torch.bincount(example)
    order = torch.argsort(example, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (n_rows.cumsum(0) - n_rows)[example[order]]
    n_parts = (n_rows / lengths.mean).ceil().long()
    start = n_parts.cumsum(0) - n_parts
    part = start[example] + rank * n_parts[example] // n_rows[example]
    return part, torch.repeat_interleave(torch.arange(len(n_rows)), n_parts), n_parts
