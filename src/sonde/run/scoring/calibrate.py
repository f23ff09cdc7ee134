"""``sonde.calibrate``: calibrate fitted detectors on other rows."""

import itertools
import sys
from pathlib import Path
from typing import Any, cast, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.calibration import Guarantee
from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector, Every
from sonde.core.reduction import AUTO
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.engine.classes import joined_names, renumbered, with_classes
from sonde.engine.progress import Bar
from sonde.engine.requests import States, Task, requests
from sonde.files.places import to_path
from sonde.run.fitting.calibrations import held_requests
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.fitting.header import data_fingerprint, require_same_model
from sonde.run.instruments.entries import Key, inner_of
from sonde.run.passes.cost import say_cost
from sonde.run.passes.crew import Crew, Runner
from sonde.run.passes.parts import has_parts, in_order, shared_by_ranks
from sonde.run.passes.ranks import Ranks
from sonde.run.passes.threads import using_threads
from sonde.run.reading.checking import check_rows
from sonde.run.reading.notes import items_of, notes_of
from sonde.run.reading.read import ARRAYS
from sonde.run.reading.recipe import recipe_in, recipe_of
from sonde.run.scoring._held_scores import Groups, held_scores
from sonde.run.scoring._scored import Asked, ScoredJob, scored_batches
from sonde.run.scoring.batches import reduction_of
from sonde.run.scoring.column_scales import column_scales
from sonde.run.scoring.needs import check_scoring_memory, needs_of_scoring
from sonde.run.scoring.opening import by_column, open_for, without
from sonde.stats import By, Calibrated, HeldScoresState, Kept
from sonde.stats.calibrated import Lengths
from sonde.store import is_store

ROWS = 10_000
GROUP = "group"


def calibrate(
    fitted: Fitted | str | Path,
    model: Any,
    data: Any = None,
    *,
    m: int = ROWS,
    reduction: str = AUTO,
    by: str | None = None,
    pooled_below: int = 0,
    guarantee: Guarantee = "marginal",
    delta: float = 0.05,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    memory: int | None = None,
    progress: bool = True,
    group: Any = None,
    **options: Any,
) -> Fitted:
    """Return the detectors of a bundle, calibrated on rows that they were not fitted on.

    Held-out scores of an earlier calibration are replaced. A hash sample of at most ``m`` scores
    and the 1,000 largest scores are kept. So memory does not grow with the data, and thresholds of
    small false-alarm rates are those of all scores. If rows come in groups, one row of each group
    calibrates, and p-values are those of one row of a new group. ``merge_calibrations`` joins
    bundles that were calibrated on parts of the data.

    Parameters
    ----------
    fitted : Fitted, or the path of a bundle
        Fitted detectors to calibrate.
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream of its states, then without ``data``.
    data : str, path or iterable
        Usual rows.
    m : int, default=10_000
        The largest number of scores of a class that the sample keeps.
    reduction : str, default="auto"
        What a p-value is about, as in ``sonde.fit``; "auto" leaves it as the bundle has it.
    by : "label", "predicted", name of a column, or None, default=None
        Keep the false-alarm rate within each class. Classes are the data's labels, which must then
        be known when rows are scored, or the model's predictions, or the values of a column of a
        table, which is then read when rows are scored. With a column, labels (``label_column``)
        still say which rows a detector knows as unusual. With the column of the groups (``group``),
        every row, not one row of each group, calibrates its own group.
    pooled_below : int, default=0
        With ``by``: a class with fewer scores has no threshold of its own and is compared with all
        scores. So the rate holds over all rows, but not within this class.
    guarantee : {"marginal", "pac"}, default="marginal"
        The rate holds on average over calibration sets, or for this calibration set with
        probability ``1 - delta``.
    delta : float, default=0.05
        Probability, in (0, 1), that the guarantee ``pac`` fails to hold.
    workers : int, default=0
        Number of worker processes, or of actors on Ray; 0 works in this process. Plain arrays are
        always scored in this process.
    threads : int, optional
        Number of threads of each worker; by default 1 with workers, else torch's setting.
    runner : {"local", "ray"}, default="local"
        Place of the workers: ``local`` processes, or actors of a ``ray`` cluster.
    address : str, optional
        Address of a running Ray cluster, ``host:port`` or ``auto``; by default a local cluster is
        started.
    memory : int or None, default=None
        Bytes that detectors and rows may take; None is 80 % of the free memory.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    group : ProcessGroup, optional
        Ranks of ``torch.distributed`` that share the work, as ``distributed.group.WORLD`` under
        ``torchrun``. Every rank makes the same call with all of the data and gets the same bytes;
        rank 0 shows the bar.
    **options
        Named options of ``sonde.read``.

    Raises
    ------
    InputError
        If the bundle was fitted on this very data, as its scores there say nothing about new rows;
        or if the calibration would not fit into the memory.
    CalibrationError
        If there are no classes to calibrate by.
    StateError
        If the bundle holds no detector, or is of another model.
    """
    fitted = as_fitted(fitted, "calibrate")
    column, labels = None if by in (None, *get_args(By)) else by, None
    if column is not None:
        _require_table(column, model)
        labels = _labels(fitted, model, data, column, options)
        options |= {"label_column": column} | by_column(fitted, data, options, column)
    by_whom: By | None = "label" if column is not None else cast("By | None", by)
    if pooled_below < 0 or (pooled_below and by is None):
        raise InputError(
            f"calibrate: expected pooled_below of at least 1 together with by, got {pooled_below} "
            f"and by={by!r}. It pools classes with few scores."
        )
    kept = Kept(m=m, by=by_whom, guarantee=guarantee, delta=delta, pooled_below=pooled_below)
    tasks = _calibrated_tasks(fitted, kept, reduction)
    stream = open_for(fitted, model, data, by_whom, new_classes=False, **options)
    in_groups = column is None or column != (options.get("group_column") or GROUP)
    require_same_model(fitted.header, stream)
    stream = with_classes(stream, fitted.label_names)
    fingerprint = data_fingerprint(stream)
    _require_other_data(fitted, len(stream), fingerprint)
    crew = Crew(
        workers, runner, address, ranks=None if group is None else Ranks(group, "calibrate")
    )
    progress = progress and crew.is_first
    needed = needs_of_scoring(fitted, stream, workers=crew.workers_here, keeps_table=False)
    check_scoring_memory(needed, memory, "calibrate")
    check_rows(stream)
    say_cost(stream, shown=progress)
    groups = Groups.of(stream) if in_groups else None
    rank = None if groups is None else groups.rank
    asked = Asked(tasks, fitted.scorers, by_whom, rank, labels)
    held, lengths = _held(asked, stream, crew, threads, kept, groups, progress)
    for text in notes_of(stream) if progress else ():
        sys.stderr.write(f"note: {text}\n")
    states: States = {
        i: fitted.states[i] for i in requests(tasks.values(), fitted.split) if i in fitted.states
    }
    for name, task in tasks.items():
        (request,) = held_requests([task], fitted.split)
        states[request] = held[name]
    seen = {"data": fingerprint, "n_examples": len(stream)} | ({"by": column} if column else {})
    seen["lengths"] = [[*name, *vars(calibrated).values()] for name, calibrated in lengths.items()]
    if scales := column_scales(stream):
        seen["columns"] = scales
    header = _header(fitted, stream, seen, has_names=by_whom == "label")
    calibrated = Fitted(tuple(tasks.values()), states, header, fitted.split, None, fitted.further)
    _ = calibrated.scorers  # a class without scores is told now
    return calibrated


def _held(
    asked: Asked,
    stream: Stream,
    crew: Crew,
    threads: int | None,
    kept: Kept,
    groups: Groups | None,
    progress: bool,
) -> tuple[dict[Key, HeldScoresState], dict[Key, Lengths]]:
    """Return every detector's kept scores, and the lengths of the examples."""
    apart = crew.is_apart and has_parts(stream)
    job = ScoredJob(stream, crew.threads(threads), tuple(stream.units()), asked)

    def held() -> tuple[dict[Key, HeldScoresState], dict[Key, Lengths]]:
        parts = itertools.chain.from_iterable(in_order(job, crew)) if apart else None
        scored = scored_batches(asked, stream) if parts is None else parts
        n_threads = None if apart else threads
        with using_threads(n_threads), Bar("calibrate", len(stream), progress) as bar:
            return held_scores(scored, asked.tasks, kept, groups, bar)

    if not apart:
        return held()
    tasks = [[*name, repr(task.instrument)] for name, task in asked.tasks.items()]
    return shared_by_ranks(job, crew, [tasks, asked.by], held)


def _header(
    fitted: Fitted, stream: Stream, seen: dict[str, Any], *, has_names: bool
) -> dict[str, Any]:
    """Return the header of a bundle with its calibration data and their class names."""
    recipe = recipe_of(stream) or recipe_in(fitted.header)
    header = {**fitted.header, "recipe": recipe, "calibrations": [seen]}
    if has_names:
        names = joined_names(fitted.label_names, stream.label_names)
        header["data"] = {**header["data"], "label_names": list(names or ())}
    return header


def _require_other_data(fitted: Fitted, n: int, fingerprint: str) -> None:
    """Raise if the data are empty, or are those that the bundle was fitted on."""
    if n == 0 or fingerprint in {u["data"] for u in fitted.header["units"]}:
        which = f"the {plural(n, 'example')} of the fit" if n else "none"
        raise InputError(
            "calibrate: expected at least one example that the detectors were not fitted on, got "
            f"{which}. Calibrate on other rows."
        )


def _labels(
    fitted: Fitted, model: Any, data: Any, column: str, options: dict[str, Any]
) -> Int[Tensor, "example"] | None:
    """Return the labels of the data by planned order, or None if no detector needs labels.

    The labels are the values of ``column``.
    """
    inner = [inner_of(task.instrument) for task in fitted.tasks]
    if all(one.usual == Every() for one in inner if isinstance(one, Detector)):
        return None
    own = {} if column == options.get("label_column") else without(fitted, options, column)
    stream = open_for(fitted, model, data, None, new_classes=False, **options, **own)
    items = items_of(stream)
    if items is None:
        return None
    label = torch.as_tensor(items.listing.label)
    return renumbered(label, stream.label_names, fitted.label_names)


def _require_table(column: str, model: Any) -> None:
    """Raise if a column is requested but the data are no table."""
    place = isinstance(model, str | Path)
    if isinstance(model, Stream) or (place and (model == ARRAYS or is_store(to_path(model)))):
        raise InputError(
            f"calibrate: by={column!r} names a column of a table, got rows that were read before. "
            "Give the classes as labels and take by='label'."
        )


def _calibrated_tasks(fitted: Fitted, kept: Kept, reduction: str) -> dict[Key, Task]:
    tasks: dict[Key, Task] = {}
    for name, task in zip(fitted.names, fitted.tasks, strict=True):
        inner = inner_of(task.instrument)
        if isinstance(inner, Detector):
            how = reduction_of(fitted, task, reduction)
            tasks[name] = Task(Calibrated(inner, reduction=how, kept=kept), task.keys)
    if not tasks:
        raise StateError("calibrate: the bundle holds no detector. Fit one, e.g. mahalanobis.")
    return tasks
