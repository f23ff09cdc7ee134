"""``sonde.run.calibrate``: detectors that are fitted, calibrated on other rows."""

from dataclasses import replace
from typing import Any

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector
from sonde.core.passes import merge_pair
from sonde.core.plan import UNIT_SIZE, Split
from sonde.core.reduction import AUTO
from sonde.core.requests import Request, States, Task, requests, targets_of
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.run.driver import run_pass
from sonde.run.entries import inner_of
from sonde.run.fit import data_fingerprint, make_plan, require_same_model
from sonde.run.fitted import Fitted
from sonde.run.progress import Bar
from sonde.run.score import open_for, reduction_of
from sonde.stats import Calibrated

ROWS = 10_000


def calibrate(
    fitted: Fitted,
    model: Any,
    data: Any = None,
    *,
    m: int = ROWS,
    reduction: str = AUTO,
    progress: bool = True,
    **options: Any,
) -> Fitted:
    """Return the detectors of a bundle, calibrated on rows that it was not fitted on.

    What was held out before is replaced. A hash sample of at most ``m`` rows is kept, so memory
    does not grow with the data; where rows come in groups, one row of each calibrates. Bundles that
    were calibrated on parts of the data are joined by ``merge_calibrations``.

    Parameters
    ----------
    fitted : Fitted
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream of its states, then without ``data``.
    data : str, path or iterable
        Usual rows.
    m : int, default=10_000
        Most rows that are kept; at least 32,768 where all rows of an example make one score.
    reduction : str, default="auto"
        What a p-value is about, as in ``sonde.fit``; "auto" leaves it as the bundle has it.
    progress : bool, default=True
    **options
        Named options of ``sonde.read``.

    Raises
    ------
    InputError
        If the bundle was fitted on this very data: its scores there are no guide to new rows.
    StateError
        If the bundle holds no detector, or is of another model.
    """
    tasks = _calibrated_tasks(fitted, m, reduction)
    stream = model if isinstance(model, Stream) else open_for(fitted, model, data, **options)
    require_same_model(fitted.header, stream)
    fingerprint = data_fingerprint(stream)
    if len(stream) == 0 or fingerprint in {u["data"] for u in fitted.header["units"]}:
        raise InputError(
            "calibrate: expected at least one example that the detectors were not fitted on, got "
            f"{len(stream)}. Calibrate on other rows."
        )
    wanted = {r.id: r for r in (replace_part(r) for r in _held(tasks).values())}
    plan = make_plan(stream, wanted, None, UNIT_SIZE, None)
    with Bar("calibrate", len(stream), progress) as bar:
        outcome = run_pass(
            stream, wanted, plan, directory=None, workers=0, fresh=False, tick=bar.advance
        )
    split = fitted.split or Split(0.5, stream.seed)
    states = _fit_states(fitted, tasks, split)
    states.update({i: outcome.states[replace_part(r).id] for i, r in _held(tasks).items()})
    seen = [{"data": fingerprint, "n_examples": len(stream)}]
    header = {**fitted.header, "calibrations": seen}
    return Fitted(tuple(tasks), states, header, split, None, fitted.further)


def merge_calibrations(a: Fitted, b: Fitted) -> Fitted:
    """Return one fitted bundle with the held-out rows of both calibrations of it.

    Raises
    ------
    StateError
        If the two are not the same detectors fitted on the same rows.
    """
    held = _held(list(a.tasks))
    fit = [i for i in a.states if i not in held]
    same = a.states.keys() == b.states.keys() and a.split == b.split
    if not same or not all(_alike(a.states[i], b.states[i]) for i in fit):
        raise StateError(
            "merge_calibrations: expected two calibrations of one fitted bundle, got bundles with "
            "other states. Calibrate the same file with the same m."
        )
    joined = {i: merge_pair(r.statistic, a.states[i], b.states[i]) for i, r in held.items()}
    seen = [*a.header.get("calibrations", []), *b.header.get("calibrations", [])]
    return replace(a, states={**a.states, **joined}, header={**a.header, "calibrations": seen})


def replace_part(request: Request) -> Request:
    """Return a request for the held-out part as one for all rows of another stream."""
    return Request(request.statistic, request.keys, request.where, "all")


def _alike(a: Any, b: Any) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and equal(a, b))


def _calibrated_tasks(fitted: Fitted, m: int, reduction: str) -> list[Task]:
    tasks = [
        Task(Calibrated.of(inner, reduction_of(fitted, task, reduction), m), task.keys)
        for task in fitted.tasks
        if isinstance(inner := inner_of(task.instrument), Detector)
    ]
    if not tasks:
        raise StateError("calibrate: the bundle holds no detector. Fit one, e.g. mahalanobis.")
    return tasks


def _held(tasks: list[Task]) -> dict[str, Request]:
    """Return the requests for the held-out rows of calibrated detectors."""
    found: dict[str, Request] = {}
    for task in tasks:
        if not isinstance(task.instrument, Calibrated):
            continue
        reads = task.instrument.all_reads()
        for column in task.instrument.held_columns:
            read = reads[f"held_{column}"]
            for keys in targets_of(task, read):
                request = Request(read.statistic, keys, read.where, "held")
                found[request.id] = request
    return dict(sorted(found.items()))


def _fit_states(fitted: Fitted, tasks: list[Task], split: Split) -> States:
    """Return the states that the detectors were fitted from, as the part ``fit`` of the split."""
    states: States = {}
    for name, request in requests(tasks, split).items():
        old = name if fitted.split is not None else replace_part(request).id
        keep = request.part == "fit" or fitted.split is not None
        states[name] = fitted.states.get(old) if keep else None
    return states
