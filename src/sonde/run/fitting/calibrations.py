"""Merge two calibrations of the same bundle on different data, after a check of their rows."""

from dataclasses import replace
from typing import Any

from sonde.core.errors import StateError
from sonde.core.plan import Split
from sonde.core.state import equal
from sonde.engine.classes import joined_names
from sonde.engine.passes import merge_pair
from sonde.engine.requests import Request, Task, reads_of
from sonde.run.fitting._joining import REMEDY, Drawn, shared_rows
from sonde.run.fitting.fitted import Fitted
from sonde.stats import HeldScoresState


def are_calibrations(a: Fitted, b: Fitted) -> bool:
    """Return whether both bundles were calibrated on rows that they were not fitted on."""
    return all("calibrations" in bundle.header for bundle in (a, b))


def merge_calibrations(a: Fitted, b: Fitted) -> Fitted:
    """Return the fitted bundle with the held-out scores of both calibrations.

    Raises
    ------
    StateError
        If the two are not the same detectors fitted on the same rows, were calibrated by different
        columns, or number their classes differently. Also if they were calibrated on the same data
        or mostly the same rows, as these scores would count twice.
    """
    held = held_requests(list(a.tasks), a.split)
    fit = [i for i in a.states if i not in held]
    same = a.states.keys() == b.states.keys() and a.split == b.split
    if not same or not all(_alike(a.states[i], b.states[i]) for i in fit):
        raise StateError(
            "merge_calibrations: expected two calibrations of the same fitted bundle, got "
            "bundles with different states. Calibrate the same file with the same m."
        )
    own, theirs = a.header.get("calibrations", []), b.header.get("calibrations", [])
    twice = {c["data"] for c in own} & {c["data"] for c in theirs}
    if twice:
        raise StateError(
            "merge_calibrations: both bundles were calibrated on the same data (fingerprint "
            f"{min(twice)[:12]}): its scores would count twice."
        )
    if {c.get("by") for c in own} != {c.get("by") for c in theirs}:
        raise StateError(
            "merge_calibrations: the bundles were calibrated separately for the classes of "
            "different columns. Calibrate both with the same column."
        )
    _require_other_rows(held, a, b)
    names = joined_names(a.label_names, b.label_names)
    if names is None:
        raise StateError(
            "merge_calibrations: the bundles use different numbers for the classes that the "
            "detectors were not fitted on. Calibrate on all rows at once."
        )
    joined = {i: merge_pair(r.statistic, a.states[i], b.states[i]) for i, r in held.items()}
    data = {**a.header["data"], "label_names": [*names]}
    header = {**a.header, "calibrations": [*own, *theirs], "data": data}
    return replace(a, states={**a.states, **joined}, header=header)


def held_requests(tasks: list[Task], split: Split | None) -> dict[str, Request]:
    """Return, by id, the requests for scores of held-out rows, which calibrate the detectors."""
    requests: dict[str, Request] = {}
    for task in tasks:
        for (group,) in reads_of(task, split).get("held_scores", []):
            requests[group.id] = group
    return dict(sorted(requests.items()))


def _require_other_rows(held: dict[str, Request], a: Fitted, b: Fitted) -> None:
    """Refuse two calibrations if most rows of one calibration are also in the other.

    Fewer shared rows count once if both keep all their rows; else a warning names them.
    """
    for name in held:
        states = a.states[name], b.states[name]
        both = [s.drawn() for s in states if isinstance(s, HeldScoresState)]
        drawn = [Drawn(draw, draw, is_cut) for draw, is_cut in both]
        shared = shared_rows(*drawn, what="kept rows")
        if shared is not None and (shared.is_most or any(one.is_cut for one in drawn)):
            shared.judge("merge_calibrations", REMEDY.replace("Fit", "Calibrate"))
            return


def _alike(a: Any, b: Any) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and equal(a, b))
