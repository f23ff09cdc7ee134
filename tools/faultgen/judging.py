"""Judge by machine what a scan said of a planted fault.

No words are matched. A finding names a *place* by its field ``location``, by what its pasted line
changes, by the rows that it lists, and by identifiers of this world (columns, tensors, modules),
which are drawn so that no word of a report is one. A *fix* is run on fresh rows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tools.faultgen.damages import restored
from tools.faultgen.drawing import bounded
from tools.faultgen.grammar import Planted
from tools.faultgen.pasting import Pasted, code_of, pasted
from tools.faultgen.places import Place, moved, moved_modules, overlap, rows_meet
from tools.faultgen.tasks import Rows
from tools.faultgen.truths import is_true
from tools.faultgen.worlds import World, answers, by_row

RIGHT, EQUIVALENT, WRONG = "right", "equivalent", "wrong"
NAMED, MISSED, CRASHED, LATE = "named", "missed", "crash", "no end"
CLEAN, TRUE, WARNED, ACCUSED = "clean", "true", "warned", "accused"
VERDICTS = (RIGHT, EQUIVALENT, NAMED, WRONG, MISSED, CRASHED, LATE)
FOUND = (RIGHT, EQUIVALENT, NAMED)
ENOUGH = 0.8
"""Fraction of what a fault took that a fix brings back."""
HELPS = 0.5
"""Fraction from which the line of a warning names what it changes."""
Finding = Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """Verdict on a report, how much its fix brings back, and where its cause says the fault is."""

    verdict: str
    recovered: float | None = None
    how: str = ""
    place: Place | None = None
    named_by: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return the judgement as JSON."""
        return {
            "verdict": self.verdict,
            "recovered": None if self.recovered is None else round(self.recovered, 3),
            "how": self.how,
            "said_place": None if self.place is None else self.place.json(),
            "named_by": list(self.named_by),
        }


def judged(made: Planted, report: Mapping[str, Any]) -> Judgement:
    """Return the judgement of a report on a world with a fault.

    Parameters
    ----------
    made : Planted
    report : mapping
        The JSON of a scan.
    """
    findings = [f for f in report["findings"] if not f["ignored"]]
    cause = next((f for f in findings if f["code"] == report["cause"]), None)
    loud = tuple(f["code"] for f in findings if f["level"] != "note" and _names(f, made))
    if cause is None:
        return Judgement(NAMED if loud else MISSED, named_by=loud)
    recovered, how, place = mended(cause, made)
    if recovered < ENOUGH:
        return Judgement(WRONG, recovered, how, place, loud)
    meets = overlap(place, made.truth, made.healthy.task.specs) or _rows_meet(cause, made)
    return Judgement(RIGHT if meets else EQUIVALENT, recovered, how, place, loud)


def _names(finding: Finding, made: Planted) -> bool:
    specs, faulty = made.healthy.task.specs, made.faulty
    place = named_place(finding, faulty)
    done = pasted(finding["fix"], faulty, faulty.given, place.modules)
    if done is not None and _helps(done, made):
        place = _touched(place, done, faulty, faulty.given)
    return overlap(place, made.truth, specs) or _rows_meet(finding, made)


def _helps(done: Pasted, made: Planted) -> bool:
    """Return whether a line that ran on the given rows brings back half of what the fault took."""
    return recovered(made, done.answers, done.rows.target, on_given=True) >= HELPS


def _touched(place: Place, done: Pasted, world: World, rows: Rows) -> Place:
    """Return a place with all that a pasted line changes."""
    found = moved(rows, done.rows, world.task.specs)
    targets = found.targets or done.on_answers or place.targets
    more = moved_modules(world.net, done.net) | place.modules
    return Place({**place.tensors, **found.tensors}, found.rows, targets, more)


def _rows_meet(finding: Finding, made: Planted) -> bool:
    rows = [int(r) for r in finding.get("rows", ()) if str(r).isdigit()]
    first, after = (finding.get("location") or {}).get("rows") or (0, 0)
    rows += list(range(first, after))
    return rows_meet(rows, made.truth, len(made.faulty.given))


def named_place(finding: Finding, world: World) -> Place:
    """Return the place that a finding names by its field or by identifiers of the world."""
    text = f"{finding['sentence']} {finding['fix']}"
    given = finding.get("location") or {}
    tensors: dict[str, frozenset[int]] = {}
    for name, spec in world.task.specs.items():
        asked = given.get("tensors") or (name,)
        found = _features(given.get("columns") or () if name in asked else (), spec.columns)
        found |= {i for i, c in enumerate(spec.columns) if _has(text, c)}
        if found or name in (given.get("tensors") or ()) or _has(text, name):
            tensors[name] = frozenset(found)
    paths: set[str] = set()
    if not finding["rows"]:  # the site of rows that are alike or wrong is not accused
        paths = {n for n, _ in world.net.named_modules() if n and _has(text, n)}
    paths |= set(given.get("modules") or ())
    whole = {p for p in paths if not any(q.startswith(f"{p}.") for q in paths)}
    targets = bool(given.get("answers"))
    return Place(tensors, None, targets, frozenset(whole))


def _features(named: Iterable[Any], columns: tuple[str, ...]) -> set[int]:
    return {
        columns.index(n) if n in columns else int(n)
        for n in named
        if n in columns or str(n).isdigit()
    }


def _has(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", text) is not None


def mended(cause: Finding, made: Planted) -> tuple[float, str, Place]:
    """Return the recovered fraction of a fix, how it was applied, and the place of the cause.

    A line of code is run. Without one, what the finding names is put right: that is what a person
    does who reads it.
    """
    faulty, rows = made.faulty, _judged_rows(made, made.faulty)
    place = named_place(cause, faulty)
    done = pasted(cause["fix"], faulty, rows, place.modules)
    if done is not None:
        place = _touched(place, done, faulty, rows)
        given, target = done.answers, done.rows.target
        if _rows_meet(cause, made):  # a line for the rows that the finding lists
            at = torch.tensor(sorted(made.truth.rows or ()))
            given, target = answers(faulty.net, rows), rows.target.clone()
            given[at], target[at] = done.answers[at], done.rows.target[at]
        return recovered(made, given, target), "pasted", place
    if not place:
        return 0.0, "no code and no place", place
    net = restored(faulty.net, made.healthy.net, place.modules)
    mixed = _put_right(rows, _judged_rows(made, made.healthy), place, faulty)
    said = "code failed, place put right" if code_of(cause["fix"]) else "place put right"
    return recovered(made, answers(net, mixed), mixed.target), said, place


def _judged_rows(made: Planted, world: World) -> Rows:
    """Return fresh rows; faults of some rows are judged on the rows that were scanned."""
    return world.given if made.truth.rows is not None else world.fresh


def _put_right(rows: Rows, healthy: Rows, place: Place, world: World) -> Rows:
    made = rows
    for name, features in place.tensors.items():
        new, axis = rows.tensors[name].clone(), world.task.specs[name].feature_axis
        if features and axis is not None:
            at = torch.tensor(sorted(features))
            new.index_copy_(axis, at, healthy.tensors[name].index_select(axis, at))
        else:
            new = healthy.tensors[name]
        made = made.with_tensor(name, new)
    return replace(made, target=healthy.target) if place.targets else made


def recovered(
    made: Planted, given: torch.Tensor, target: torch.Tensor, *, on_given: bool = False
) -> float:
    """Return the fraction of what the fault took that these answers bring back."""
    kind = made.healthy.task.kind
    scores: list[float] = []
    for world in (made.healthy, made.faulty):
        rows = world.given if on_given else _judged_rows(made, world)
        scores.append(bounded(float(by_row(kind, answers(world.net, rows), rows.target).mean())))
    if given.shape[0] != target.shape[0]:
        return 0.0
    now = bounded(float(by_row(kind, given, target).mean()))
    return (now - scores[1]) / max(scores[0] - scores[1], 1e-9)


def judged_healthy(report: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Return the verdict on the report of a world without a fault, and the false warnings.

    It is ``true`` if there are warnings and all of them are true of the world.
    """
    loud = [f for f in report["findings"] if not f["ignored"] and f["level"] != "note"]
    false = [f["code"] for f in loud if not is_true(f, world)]
    verdict = ACCUSED if report["cause"] is not None else WARNED if false else TRUE
    return {"verdict": verdict if loud else CLEAN, "false": false}
