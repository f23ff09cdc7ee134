"""``sonde.score``: fitted detectors on new rows, a line for each row, site and detector."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Int
from pyarrow import csv, parquet
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.files import atomic_write
from sonde.core.instrument import Detector, score_needs
from sonde.core.reduction import AUTO, reduction_at
from sonde.core.requests import Task
from sonde.core.result import Scorer
from sonde.core.selection import JoinedRows
from sonde.core.stream import ArrayStream, Stream
from sonde.run.entries import Key, inner_of
from sonde.run.fit import require_same_model
from sonde.run.fitted import Fitted
from sonde.run.progress import Bar
from sonde.run.read import read
from sonde.stats import Calibrated, CalibratedScorer

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("position", pa.int64()),
        ("site", pa.string()),
        ("instrument", pa.string()),
        ("score", pa.float64()),
        ("p", pa.float64()),
    ]
)


def score(
    fitted: Fitted,
    model: Any,
    data: Any = None,
    *,
    reduction: str = AUTO,
    progress: bool = True,
    **options: Any,
) -> pa.Table:
    """Score rows, or examples of several rows, with every detector of a bundle.

    Parameters
    ----------
    fitted : Fitted
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream of its states, then without ``data``.
    data : str, path or iterable
        What to score.
    reduction : str, default="auto"
        Where an example has several rows: one score of the example by ``max``, ``mean`` or
        ``topk_mean(k)``, or each of its ``rows``. "auto" is what the bundle was calibrated for.
    progress : bool, default=True
    **options
        Named options of ``sonde.read``.

    Returns
    -------
    pyarrow.Table
        Columns ``id position site instrument score p``: higher score = more unusual; ``p`` is the
        conformal p-value, null where the bundle was not calibrated for this reduction. The
        ``position`` of a reduced score is that of its most unusual row.

    Raises
    ------
    StateError
        If the bundle was fitted for another model, site or reducer, or holds no detector.
    """
    stream = model if isinstance(model, Stream) else open_for(fitted, model, data, **options)
    batches: list[pa.RecordBatch] = []
    with Bar("score", len(stream), progress) as bar:
        for table in score_batches(fitted, stream, reduction):
            batches.append(table)
            bar.advance(table.num_rows // max(1, len(fitted.scorers)))
    return pa.Table.from_batches(batches, schema=SCHEMA)


def open_for(fitted: Fitted, model: Any, data: Any, **options: Any) -> Stream:
    """Return the stream that a bundle wants: its sites, its reducer, its objective."""
    reading = fitted.header.get("reading") or {}
    sites = [s["text"] for s in fitted.header["sites"] if "|" not in s["text"]]
    reducers = {s["reducer"] for s in fitted.header["sites"]}
    wants = {
        "sites": sites,
        "reducer": next(iter(reducers)) if len(reducers) == 1 else "auto",
        "objective": reading.get("objective"),
        "perturb": reading.get("perturb"),
        "keep_special": bool(reading.get("keep_special", False)),
        "logits": "logits" in {n for s in fitted.scorers.values() for n in needs_of(s)} or None,
    }
    try:
        stream = read(model, data, **{**wants, **options})
        _ = stream.schema  # sites are looked up here
    except SiteError as error:
        raise StateError(
            f"score: the state was fitted at {', '.join(sites[:3])}, and not all of these are "
            f"sites of this model: {error} Score with the model that it was fitted on."
        ) from error
    return stream


def needs_of(scorer: Scorer) -> tuple[str, ...]:
    """Return the columns that a scorer takes, calibrated or not."""
    return score_needs(scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer)


def reduction_of(fitted: Fitted, task: Task, asked: str = AUTO) -> str | None:
    """Return how the scores of an example's rows become one; None where each stands for itself."""
    if asked == AUTO and isinstance(task.instrument, Calibrated):
        return task.instrument.reduction
    reducers = {s["text"]: s["reducer"] for s in fitted.header["sites"]}
    inner = inner_of(task.instrument)
    own = isinstance(inner, Detector) and inner.reduces
    return reduction_at([reducers[key] for key in task.keys], asked, own)


def score_batches(
    fitted: Fitted, stream: Stream, reduction: str = AUTO
) -> Iterator[pa.RecordBatch]:
    """Yield the table of ``score`` batch by batch; memory does not grow with the data."""
    if not fitted.scorers:
        raise StateError("score: the bundle holds no detector. Fit one, e.g. mahalanobis.")
    if len(stream) == 0:
        raise InputError("score: expected at least one example, got none. The data is empty.")
    require_same_model(fitted.header, stream)
    tasks = dict(zip(fitted.names, fitted.tasks, strict=True))
    hows = {name: reduction_of(fitted, tasks[name], reduction) for name in fitted.scorers}
    whole = _Whole(stream, hows)
    for batch in stream:
        whole.check(batch)
        for name, scorer in fitted.scorers.items():
            yield _record(batch, name, tasks[name], scorer, hows[name])


class _Whole:
    """A check that examples of plain arrays, whose rows may lie apart, arrive whole."""

    def __init__(self, stream: Stream, hows: dict[Key, str | None]) -> None:
        self.keys = {k for (_, k), how in hows.items() if how is not None}
        self.keys = self.keys if isinstance(stream, ArrayStream) else set()
        self.seen: set[tuple[str, int]] = set()

    def check(self, batch: Batch) -> None:
        if not self.keys:
            return
        here = set(zip(batch.ids, torch.as_tensor(batch.occurrence).tolist(), strict=True))
        if not here.isdisjoint(self.seen):
            raise InputError(
                f"score: the rows of {min(here & self.seen)[0]} do not lie together, or are more "
                "than a batch holds. Sort the rows by their ids, or score them as rows."
            )
        self.seen |= here


def _record(batch: Batch, name: Key, task: Task, scorer: Scorer, how: str | None) -> pa.RecordBatch:
    method, key = name
    needs = needs_of(scorer)
    whose = () if how is None else ("ids", "occurrence")
    joined = JoinedRows.of(batch, task.keys, (*needs, *whose), task.instrument.span)
    columns, who = joined.columns[: len(needs)], joined.columns[len(needs) :]
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    of_row, position = joined.example, joined.position
    if how is not None:
        example = _in_order_of_arrival(torch.column_stack(who))
        found = scorer.reduced(scores, example, how, *columns)
        of_row, position, scores = of_row[found.row], position[found.row], found.score
    example = of_row.tolist()
    return pa.RecordBatch.from_pydict(
        {
            "id": [batch.ids[i] for i in example],
            "position": position.tolist(),
            "site": [key] * len(example),
            "instrument": [method] * len(example),
            "score": scores.tolist(),
            "p": _p_values(scorer, scores, how),
        },
        schema=SCHEMA,
    )


def _in_order_of_arrival(who: Int[Tensor, "row 3"]) -> Int[Tensor, "row"]:
    """Return 0, 1, ... for each distinct row, numbered as they first come."""
    which = torch.unique(who, dim=0, return_inverse=True)[1]
    first = torch.full((int(which.max()) + 1,), len(who))
    first.scatter_reduce_(0, which, torch.arange(len(who)), "amin")
    return first.argsort().argsort()[which]


def _p_values(scorer: Scorer, scores: Tensor, how: str | None) -> list[float | None]:
    if isinstance(scorer, CalibratedScorer) and scorer.reduction == how:
        return scorer.calibration.p_value(scores).tolist()
    return [None] * len(scores)


SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")


def check_suffix(path: Path) -> None:
    """Refuse a table's path whose suffix names no format.

    Raises
    ------
    InputError
        With the suffixes that do.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"write_table: expected a path that ends in .parquet, .csv or .jsonl, got {path.name}."
        )


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values; the score of a row that is not finite is None."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in table.to_pylist()
    ]


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write a table as Parquet, CSV or JSON lines, by the path's suffix.

    JSON has no infinity: there the score of a row that is not finite is null.

    Raises
    ------
    InputError
        If the suffix is none of these.
    """
    path = Path(path)
    check_suffix(path)
    sink = io.BytesIO()
    if path.suffix == ".parquet":
        parquet.write_table(table, sink)
    elif path.suffix == ".csv":
        csv.write_csv(table, sink)
    else:
        lines = (json.dumps(row, allow_nan=False) for row in plain_rows(table))
        sink.write("".join(f"{line}\n" for line in lines).encode())
    atomic_write(path, sink.getvalue())
