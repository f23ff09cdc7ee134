"""``sonde.score``: fitted detectors on new rows, a line for each row, site and detector."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.classes import with_classes
from sonde.core.errors import InputError, SiteError, SondeWarning, StateError
from sonde.core.instrument import Detector, score_needs
from sonde.core.reduction import AUTO, reduction_at
from sonde.core.requests import Task
from sonde.core.result import Scorer
from sonde.core.selection import JoinedRows
from sonde.core.site import Reducer
from sonde.core.stream import Stream
from sonde.run.bundles.fitted import Fitted
from sonde.run.fitting.fit import require_same_model
from sonde.run.instruments.entries import Key, inner_of
from sonde.run.passes.progress import Bar
from sonde.run.reading.read import ARRAYS, open_store, read, require_alone
from sonde.run.reading.recipe import default_options
from sonde.run.scoring._apart import can_score_apart, score_apart
from sonde.run.scoring.explain import COLUMNS, Line, layers_of, positions_of, units_of
from sonde.run.scoring.places import check_places
from sonde.run.workers.crew import Crew, Runner
from sonde.stats import By, Calibrated, CalibratedScorer, ClassCalibration
from sonde.stats.calibrated import EXAMPLE
from sonde.store import Store, is_store

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


def score(
    fitted: Fitted,
    model: Any,
    data: Any = None,
    *,
    reduction: str = AUTO,
    explain: int = 0,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    progress: bool = True,
    **options: Any,
) -> pa.Table:
    """Score rows, or examples of several rows, with every detector of a bundle.

    Parameters
    ----------
    fitted : Fitted
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream or a store of its states, then without
        ``data``.
    data : str, path or iterable
        What to score.
    reduction : str, default="auto"
        Where an example has several rows: one score of the example (of a long text: of each piece)
        by ``max``, ``mean`` or ``topk_mean(k)``, or each of its ``rows``. "auto" is what the bundle
        was calibrated for.
    explain : int, default=0
        How many of the most unusual layers, units, and tokens or patches each line names.
    workers, threads, runner, address
        As in ``sonde.fit``; plain arrays are scored in this process.
    progress : bool, default=True
    **options
        Named options of ``sonde.read``.

    Returns
    -------
    pyarrow.Table
        Columns ``id row position site instrument score p``: higher score = more unusual; ``p`` is
        the conformal p-value, null where the bundle was not calibrated for this reduction. ``row``
        is the item's number in the data as they lie, from 0 (items that ``skip_bad`` left out
        count, empty lines do not); null for a store to which data were appended. Lines stand in
        the order in which rows were read, for texts by length inside a unit. The ``position`` of a
        reduced score is that of its most unusual row. With ``explain``, lists:
        ``layers layer_p``, the sites where the detector finds the row most unusual and the p-values
        there (calibrated detectors at several sites); ``units unit_shares``, the units that add
        most to the score (detectors that can tell); ``positions position_scores``, the most unusual
        tokens or patches of an example with several rows.

    Raises
    ------
    StateError
        If the bundle was fitted for another model, site or reducer, or holds no detector.
    """
    stream = open_for(fitted, model, data, **options)
    crew = Crew(workers, runner, address)
    batches: list[pa.RecordBatch] = []
    if crew.is_apart and can_score_apart(stream):
        check_scoring(fitted, stream, explain)
        tables = score_apart(fitted, stream, crew, reduction, explain, threads)
    else:
        tables = score_batches(fitted, stream, reduction, explain)
    with Bar("score", len(stream), progress) as bar:
        for table in tables:
            batches.append(table)
            bar.advance(table.num_rows // max(1, len(fitted.scorers)))
    made = pa.Table.from_batches(batches, schema=EXPLAINED if explain else SCHEMA)
    _say_without_row(made, stream)
    return made


def _say_without_row(table: pa.Table, stream: Stream) -> None:
    """Warn of items that have no line, because no row of theirs is read at any site.

    An item of plain arrays is a row, of which several may be one example.
    """
    source = stream.source_rows
    if source is None:
        return
    lost = np.setdiff1d(source, table["row"].drop_null().to_numpy())
    if len(lost) and stream.identity().get("model") is not None:
        warnings.warn(
            f"score: {len(lost):,} of {len(np.unique(source)):,} items have no line, the first is "
            f"item {lost[0]:,}: nothing of them is read at the scored sites, as of texts with one "
            "token where predictions are, or with special tokens alone.",
            SondeWarning,
            stacklevel=3,
        )


def open_for(
    fitted: Fitted, model: Any, data: Any, by: By | None = None, /, **options: Any
) -> Stream:
    """Return the stream that a bundle wants: its sites, its reducer, its objective."""
    if isinstance(model, Stream):
        require_alone(model, repr(model), data, options)
        return model
    if isinstance(model, str | Path) and is_store(Path(model)):
        return _stored(fitted, model, data, options)
    reading = fitted.header.get("reading") or {}
    by_site = {s["text"]: s["reducer"] for s in fitted.header["sites"] if "|" not in s["text"]}
    sites, reducers = list(by_site), set(by_site.values())
    if len(reducers) > 1:
        sites = [f"{site}|{reducer}" for site, reducer in by_site.items()]
    wants = {name: reading.get(name) for name in ("objective", "perturb")} | {"sites": sites}
    if not (isinstance(model, str) and model == ARRAYS):
        one = Reducer.parse(next(iter(reducers))) if len(reducers) == 1 else "auto"
        wants |= {"reducer": one, "keep_special": bool(reading.get("keep_special", False))}
        wants |= {"logits": _needs_logits(fitted) or by == "predicted" or None}
    try:
        kept = default_options(fitted.header, model, data, options)
        kept |= _class_column(fitted, model, options)
        stream = read(model, data, **{**wants, **kept, **options})
        _ = stream.schema  # sites are looked up here
    except SiteError as error:
        reason = str(error).partition(": ")[2].partition(". ")[0].rstrip(".")
        raise StateError(
            f"score: the state was fitted at {_first(sites)}, and not all of these are sites of "
            f"this model ({reason}). Score with the model that it was fitted on."
        ) from error
    return stream


def _class_column(fitted: Fitted, model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the column that a bundle was calibrated by, where no other one is asked for."""
    columns = {c["by"] for c in fitted.header.get("calibrations", []) if c.get("by")}
    if not columns or options.get("label_column") is not None or model == ARRAYS:
        return {}
    options.pop("label_column", None)
    return {"label_column": columns.pop()}


def _stored(fitted: Fitted, place: str | Path, data: Any, options: dict[str, Any]) -> Stream:
    """Return the rows of a store at the sites of a bundle."""
    store = open_store(place, data, "auto", "auto", {}, options)
    require_same_model(fitted.header, store)
    return Store(place, [site["text"] for site in fitted.header["sites"]], checked=True)


def _first(sites: list[str]) -> str:
    more = f" and {len(sites) - 3} more" if len(sites) > 3 else ""
    return ", ".join(sites[:3]) + more


def _needs_logits(fitted: Fitted) -> bool:
    return any(
        "logits" in needs_of(scorer)
        or (isinstance(scorer, CalibratedScorer) and scorer.by == "predicted")
        for scorer in fitted.scorers.values()
    )


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


def spot(line: dict[str, Any], fitted: Fitted) -> str:
    """Return which row of its example a line of the table is about, in words.

    Nothing where an example has one row; of a text in pieces, where its piece begins.
    """
    reducers = {s["text"]: Reducer.parse(s["reducer"]) for s in fitted.header["sites"]}
    if not all(reducers[key].one_row for key in line["site"].split(" & ")):
        return f"position {line['position']:,}"
    return f"piece from position {line['position']:,}" if line["position"] else ""


def check_scoring(fitted: Fitted, stream: Stream, explain: int) -> None:
    """Refuse a bundle, data or options that cannot give scores.

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
        found = {
            name: record(batch, name, tasks[name], scorer, hows[name], explain, source)
            for name, scorer in scorers.items()
        }
        if explain:
            found = _with_layers(found, hows, scorers, explain)
        for columns in found.values():
            yield pa.RecordBatch.from_pydict(columns, schema=EXPLAINED if explain else SCHEMA)


def _with_layers(
    found: dict[Key, dict[str, Any]],
    hows: dict[Key, str | None],
    scorers: dict[Key, Scorer],
    n: int,
) -> dict[Key, dict[str, Any]]:
    """Return the columns of a batch with its most unusual layers."""
    lines = {}
    for name, columns in found.items():
        last = columns["position" if hows[name] is None else "_piece"]
        where = zip(columns["id"], columns["_occurrence"], last, strict=True)
        values = zip(where, columns["score"], columns["p"], strict=True)
        lines[name] = [Line(*value) for value in values]
    layers = layers_of(lines, scorers, n)
    wanted = set(EXPLAINED.names)
    return {
        name: {k: v for k, v in (columns | layers[name]).items() if k in wanted}
        for name, columns in found.items()
    }


class Whole:
    """A check that examples of plain arrays, whose rows may lie apart, arrive whole."""

    def __init__(self, hows: dict[Key, str | None]) -> None:
        self.reduces = any(how is not None for how in hows.values())
        self.seen: set[tuple[str, int]] = set()

    def check(self, batch: Batch) -> None:
        """Refuse a batch whose examples have rows in an earlier one."""
        if not self.reduces or not batch.scattered:
            return
        here = set(zip(batch.ids, torch.as_tensor(batch.occurrence).tolist(), strict=True))
        if not here.isdisjoint(self.seen):
            raise InputError(
                f"score: the rows of {min(here & self.seen)[0]} do not lie together, or are more "
                "than a batch holds. Sort the rows by their ids, or score them as rows."
            )
        self.seen |= here


def record(
    batch: Batch,
    name: Key,
    task: Task,
    scorer: Scorer,
    how: str | None,
    explain: int = 0,
    source: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the columns of the table for one detector and batch."""
    method, key = name
    needs = needs_of(scorer)
    whose = () if how is None and not explain else EXAMPLE
    by = scorer.by if isinstance(scorer, CalibratedScorer) else None
    names = (*needs, *whose, *class_columns(by))
    joined = JoinedRows.of(batch, task.keys, names, task.instrument.span)
    columns, rest = joined.columns[: len(needs)], joined.columns[len(needs) :]
    who, classes = rest[: len(whose)], rest[len(whose) :]
    with torch.no_grad():
        scores = scorer.score(*columns).double().cpu()
    of_row, position = joined.example, joined.position
    label, row, every = classes_of(by, classes, len(of_row)), torch.arange(len(of_row)), scores
    example = in_order_of_arrival(torch.column_stack(who)) if whose and len(of_row) else of_row
    if how is not None:
        found = scorer.reduced(scores, example, how, *columns)
        row, scores = found.row, found.score
    named = of_row[row].tolist()
    made = {
        "id": [batch.ids[i] for i in named],
        "row": [None] * len(named)
        if source is None
        else source[batch.order[named].numpy()].tolist(),
        "position": position[row].tolist(),
        "site": [key] * len(named),
        "instrument": [method] * len(named),
        "score": scores.tolist(),
        "p": _p_values(scorer, scores, how, label[row]),
    }
    if explain:
        made |= {f"_{c}": who[EXAMPLE.index(c)][row].tolist() for c in ("occurrence", "piece")}
        made |= units_of(scorer, dict(zip(needs, columns, strict=True)), row, explain)
        made |= positions_of(every, example, position, row, explain)
    return made


def in_order_of_arrival(who: Int[Tensor, "row 4"]) -> Int[Tensor, "row"]:
    """Return 0, 1, ... for each distinct row, numbered as they first come."""
    which = torch.unique(who, dim=0, return_inverse=True)[1]
    first = torch.full((int(which.max()) + 1,), len(who))
    first.scatter_reduce_(0, which, torch.arange(len(who)), "amin")
    return first.argsort().argsort()[which]


def _p_values(
    scorer: Scorer, scores: Tensor, how: str | None, label: Int[Tensor, "row"]
) -> list[float | None]:
    if not isinstance(scorer, CalibratedScorer) or scorer.reduction != how:
        return [None] * len(scores)
    if isinstance(scorer.calibration, ClassCalibration):
        return scorer.calibration.p_value(scores, label).tolist()
    return scorer.calibration.p_value(scores).tolist()


def class_columns(by: str | None) -> tuple[str, ...]:
    """Return the column that says the class of a row."""
    return {None: (), "label": ("label",), "predicted": ("logits",)}[by]


def classes_of(by: str | None, columns: Sequence[Tensor], n: int) -> Int[Tensor, "row"]:
    """Return the class of each of ``n`` rows; -1 where there are none."""
    if by is None:
        return torch.full((n,), -1)
    return (columns[0] if by == "label" else columns[0].argmax(dim=1)).cpu()
