"""``sonde.run.calibrate``: detectors that are fitted, calibrated on other rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from sonde.core.calibration import Guarantee
from sonde.core.classes import joined_names, with_classes
from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector
from sonde.core.passes import merge_pair
from sonde.core.plan import Split
from sonde.core.reduction import AUTO
from sonde.core.requests import Request, States, Task, reads_of, requests
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.run._held_scores import held_scores
from sonde.run._joining import Drawn, most_shared
from sonde.run._recipe import recipe_in, recipe_of
from sonde.run.entries import Key, inner_of
from sonde.run.fit import data_fingerprint, require_same_model
from sonde.run.fitted import Fitted
from sonde.run.progress import Bar
from sonde.run.read import ARRAYS
from sonde.run.score import open_for, reduction_of
from sonde.stats import By, Calibrated, HeldScoresState, Kept
from sonde.store import is_store

ROWS = 10_000
GROUP = "group"


def calibrate(
    fitted: Fitted,
    model: Any,
    data: Any = None,
    *,
    m: int = ROWS,
    reduction: str = AUTO,
    by: str | None = None,
    guarantee: Guarantee = "marginal",
    delta: float = 0.05,
    progress: bool = True,
    **options: Any,
) -> Fitted:
    """Return the detectors of a bundle, calibrated on rows that it was not fitted on.

    What was held out before is replaced. Of the scores a hash sample of at most ``m`` and the 1,000
    largest are kept, so memory does not grow with the data, and thresholds of small false-alarm
    rates are those of all scores. Where rows come in groups, one row of each calibrates. Bundles
    that were calibrated on parts of the data are joined by ``merge_calibrations``.

    Parameters
    ----------
    fitted : Fitted
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream of its states, then without ``data``.
    data : str, path or iterable
        Usual rows.
    m : int, default=10_000
        Most scores of a class that are kept in the sample.
    reduction : str, default="auto"
        What a p-value is about, as in ``sonde.fit``; "auto" leaves it as the bundle has it.
    by : "label", "predicted", name of a column, or None, default=None
        Keep the false-alarm rate within each class: by the data's labels, which must then be known
        when rows are scored, or by the model's predictions; or within each value of a column of a
        table, which is then read when rows are scored. By the column of the groups (``group``),
        every row calibrates its own group, and not one row of each.
    guarantee : {"marginal", "pac"}, default="marginal"
        The rate holds on average over calibration sets, or for this one with ``1 - delta``.
    delta : float, default=0.05
    progress : bool, default=True
    **options
        Named options of ``sonde.read``.

    Raises
    ------
    InputError
        If the bundle was fitted on this very data: its scores there are no guide to new rows.
    CalibrationError
        If there are no classes to calibrate by.
    StateError
        If the bundle holds no detector, or is of another model.
    """
    column = None if by in (None, *get_args(By)) else by
    if column is not None:
        _require_table(column, model)
        options["label_column"] = column
    said: By | None = "label" if column is not None else cast("By | None", by)
    kept = Kept(m=m, by=said, guarantee=guarantee, delta=delta)
    tasks = _calibrated_tasks(fitted, kept, reduction)
    stream = open_for(fitted, model, data, said, **options)
    in_groups = column is None or column != (options.get("group_column") or GROUP)
    require_same_model(fitted.header, stream)
    stream = with_classes(stream, fitted.label_names)
    fingerprint = data_fingerprint(stream)
    if len(stream) == 0 or fingerprint in {u["data"] for u in fitted.header["units"]}:
        raise InputError(
            "calibrate: expected at least one example that the detectors were not fitted on, got "
            f"{len(stream)}. Calibrate on other rows."
        )
    with Bar("calibrate", len(stream), progress) as bar:
        held = held_scores(tasks, fitted.scorers, stream, kept, bar, in_groups)
    states: States = {
        i: fitted.states[i] for i in requests(tasks.values(), fitted.split) if i in fitted.states
    }
    for name, task in tasks.items():
        (request,) = _held([task], fitted.split)
        states[request] = held[name]
    seen = [{"data": fingerprint, "n_examples": len(stream)} | ({"by": column} if column else {})]
    recipe = recipe_of(stream) or recipe_in(fitted.header)
    header = {**fitted.header, "recipe": recipe, "calibrations": seen}
    if said == "label":
        names = joined_names(fitted.label_names, stream.label_names)
        header["data"] = {**header["data"], "label_names": list(names or ())}
    found = Fitted(tuple(tasks.values()), states, header, fitted.split, None, fitted.further)
    _ = found.scorers  # a class without scores is told now
    return found


def merge_calibrations(a: Fitted, b: Fitted) -> Fitted:
    """Return one fitted bundle with the held-out scores of both calibrations of it.

    Raises
    ------
    StateError
        If the two are not the same detectors fitted on the same rows, or were calibrated on the
        same data or mostly the same rows: their scores would count twice.
    """
    held = _held(list(a.tasks), a.split)
    fit = [i for i in a.states if i not in held]
    same = a.states.keys() == b.states.keys() and a.split == b.split
    if not same or not all(_alike(a.states[i], b.states[i]) for i in fit):
        raise StateError(
            "merge_calibrations: expected two calibrations of one fitted bundle, got bundles with "
            "other states. Calibrate the same file with the same m."
        )
    mine, theirs = a.header.get("calibrations", []), b.header.get("calibrations", [])
    twice = {c["data"] for c in mine} & {c["data"] for c in theirs}
    if twice:
        raise StateError(
            "merge_calibrations: both bundles were calibrated on the same data (fingerprint "
            f"{min(twice)[:12]}): its scores would count twice."
        )
    if {c.get("by") for c in mine} != {c.get("by") for c in theirs}:
        raise StateError("merge_calibrations: the bundles were calibrated by other columns.")
    _require_other_rows(held, a, b)
    names = joined_names(a.label_names, b.label_names)
    if names is None:
        raise StateError(
            "merge_calibrations: the bundles number classes that the detectors were not fitted on "
            "in other ways. Calibrate on all rows at once."
        )
    joined = {i: merge_pair(r.statistic, a.states[i], b.states[i]) for i, r in held.items()}
    data = {**a.header["data"], "label_names": [*names]}
    header = {**a.header, "calibrations": [*mine, *theirs], "data": data}
    return replace(a, states={**a.states, **joined}, header=header)


def _require_table(column: str, model: Any) -> None:
    """Refuse a column of data that are no table."""
    place = isinstance(model, str | Path)
    if isinstance(model, Stream) or (place and (model == ARRAYS or is_store(Path(model)))):
        raise InputError(
            f"calibrate: by={column!r} names a column of a table, got rows that were read before. "
            "Give the classes as labels and take by='label'."
        )


def _require_other_rows(held: dict[str, Request], a: Fitted, b: Fitted) -> None:
    """Refuse calibrations of which most rows of one are in the other."""
    for name in held:
        states = a.states[name], b.states[name]
        both = [s.drawn() for s in states if isinstance(s, HeldScoresState)]
        found = most_shared(*(Drawn(draw, draw, is_cut) for draw, is_cut in both))
        if found is not None:
            raise StateError(
                f"merge_calibrations: {found[0]:,} of {found[1]:,} kept rows of one bundle have "
                "the ids of rows of the other: their scores would count twice. Calibrate on data "
                "that share no examples, or give those of different data different ids."
            )


def are_calibrations(a: Fitted, b: Fitted) -> bool:
    """Return whether both bundles were calibrated on rows that they were not fitted on."""
    return all("calibrations" in bundle.header for bundle in (a, b))


def _alike(a: Any, b: Any) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and equal(a, b))


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


def _held(tasks: list[Task], split: Split | None) -> dict[str, Request]:
    """Return the requests for the scores of detectors that were calibrated on other rows."""
    found: dict[str, Request] = {}
    for task in tasks:
        for (group,) in reads_of(task, split).get("held_scores", []):
            found[group.id] = group
    return dict(sorted(found.items()))
