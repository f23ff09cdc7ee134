"""``sonde.score``: fitted detectors on new rows, a line for each row, site and detector."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.files import atomic_write
from sonde.core.instrument import score_needs
from sonde.core.result import Scorer
from sonde.core.stream import Stream
from sonde.run.entries import Key
from sonde.run.fit import require_same_model
from sonde.run.fitted import Fitted
from sonde.run.progress import Bar
from sonde.run.read import read
from sonde.stats import CalibratedScorer

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
    fitted: Fitted, model: Any, data: Any = None, *, progress: bool = True, **options: Any
) -> pa.Table:
    """Score rows with every detector of a bundle.

    Parameters
    ----------
    fitted : Fitted
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream of its states, then without ``data``.
    data : str, path or iterable
        What to score.
    progress : bool, default=True
    **options
        Named options of ``sonde.read``.

    Returns
    -------
    pyarrow.Table
        Columns ``id position site instrument score p``: higher score = more unusual; ``p`` is the
        conformal p-value, null where the bundle was fitted without calibration.

    Raises
    ------
    StateError
        If the bundle was fitted for another model, site or reducer, or holds no detector.
    """
    stream = model if isinstance(model, Stream) else open_for(fitted, model, data, **options)
    batches: list[pa.RecordBatch] = []
    with Bar("score", len(stream), progress) as bar:
        for table in score_batches(fitted, stream):
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


def score_batches(fitted: Fitted, stream: Stream) -> Iterator[pa.RecordBatch]:
    """Yield the table of ``score`` batch by batch; memory does not grow with the data."""
    if not fitted.scorers:
        raise StateError("score: the bundle holds no detector. Fit one, e.g. mahalanobis.")
    if len(stream) == 0:
        raise InputError("score: expected at least one example, got none. The data is empty.")
    require_same_model(fitted.header, stream)
    for batch in stream:
        for name, scorer in fitted.scorers.items():
            yield _record(batch, name, scorer)


def _record(batch: Batch, name: Key, scorer: Scorer) -> pa.RecordBatch:
    method, key = name
    columns = [batch.column(c, key) for c in needs_of(scorer)]
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    example = batch.example[key].tolist()
    return pa.RecordBatch.from_pydict(
        {
            "id": [batch.ids[i] for i in example],
            "position": batch.position[key].tolist(),
            "site": [key] * len(example),
            "instrument": [method] * len(example),
            "score": scores.tolist(),
            "p": _p_values(scorer, scores),
        },
        schema=SCHEMA,
    )


def _p_values(scorer: Scorer, scores: Tensor) -> list[float | None]:
    if isinstance(scorer, CalibratedScorer):
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
