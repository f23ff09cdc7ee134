"""Detectors of a guard in float32 with their thresholds, and their scores of rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema, special_tokens
from sonde.core.errors import CalibrationError, InputError, StateError
from sonde.core.result import Scorer
from sonde.core.site import Reducer, Site
from sonde.core.state import map_tensors
from sonde.core.statistic import Span
from sonde.engine.requests import Task
from sonde.engine.selection import JoinedRows
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import class_columns, classes_of, needs_of
from sonde.stats import CalibratedScorer, ClassCalibration

BROUGHT = (
    "x",
    "logits",
    "perturbed_logits",
    "grad",
    "ids",
    "occurrence",
    "position",
    "grid",
    "side",
    "special",
)
Methods = str | Sequence[str | Key]
BIGGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class Alarm:
    """A row or example whose score exceeds its detector's threshold or is not finite.

    Parameters
    ----------
    method, site : str
    step : int
        Which forward of this text: 0, or more if the forward continued a key-value cache.
    example, position : int
        Row of the batch, and position of the alarm in this row.
    score, threshold : float
    p : float or None
        Conformal p-value; None if the probe was not calibrated.
    forward : int
        Number of the forward among all that the guard has seen, from 0.
    """

    method: str
    site: str
    step: int
    example: int
    position: int
    score: float
    threshold: float
    p: float | None
    forward: int = 0


@dataclass(frozen=True)
class WatchedDetector:
    """One detector at one site, or over the sites ``keys``, with float32 tensors."""

    name: Key
    keys: tuple[str, ...]
    span: Span
    scorer: Scorer
    needs: tuple[str, ...]
    threshold: float
    reduction: str | None

    @property
    def by(self) -> str | None:
        """Source of a row's class, ``label`` or ``predicted``; None if classes are not used."""
        return self.scorer.by if isinstance(self.scorer, CalibratedScorer) else None

    def p_value(self, scores: Any, label: Tensor | None) -> Float[Tensor, "row"] | None:
        """Return p-values, or None if the detector is not calibrated."""
        if not isinstance(self.scorer, CalibratedScorer):
            return None
        return self.scorer.p_value(scores, label)

    def thresholds(self, alpha: float | None, n: int, label: Tensor | None) -> Float[Tensor, "row"]:
        """Return the threshold of each of ``n`` scores."""
        calibration = self.scorer.calibration if isinstance(self.scorer, CalibratedScorer) else None
        if alpha is None or not isinstance(calibration, ClassCalibration):
            return torch.full((n,), self.threshold, dtype=torch.float64)
        return calibration.thresholds(alpha, label, n).clamp(max=BIGGEST)


@dataclass(frozen=True)
class ScoredForward:
    """Scores of one detector in one forward pass; ``label`` if thresholds depend on the class."""

    scores: Float[Tensor, "row"]
    example: Int[Tensor, "_row"]
    position: Int[Tensor, "_row"]
    label: Int[Tensor, "_row"] | None


@dataclass(frozen=True)
class GuardStep:
    """The scores of one forward pass, by detector."""

    scores: Float[Tensor, "score"]
    counts: tuple[int, ...]
    example: tuple[Int[Tensor, "_row"], ...]
    position: tuple[Int[Tensor, "_row"], ...]
    label: tuple[Int[Tensor, "_row"] | None, ...]


def schema_of(site: dict[str, Any]) -> SiteSchema:
    """Return the schema of one kind of rows in a bundle's header.

    Raises
    ------
    StateError
        If it does not say how outputs become rows: it was fitted on arrays, or long ago.
    """
    if "axes" not in site:
        raise StateError(
            f"Guard: the probe does not say which axes the outputs at {site['text']} have. Fit it "
            "again with this version."
        )
    place = Site.parse(site["text"].partition("|")[0])
    if site["text"].endswith("|entry"):
        place = replace(place, port="in", key=None)
    prefix, suffix, cls = special_tokens(site)
    return SiteSchema(
        site["text"],
        place,
        Reducer.parse(site["reducer"]),
        int(site["dim"]),
        str(site.get("dtype", "float32")),
        axes=str(site["axes"]),
        prefix=prefix,
        suffix=suffix,
        cls=cls,
    )


def in_single(scorer: Scorer, device: torch.device) -> Any:
    """Return a scorer with its tensors on a device, and float64 tensors converted to float32.

    Tensors of float64 stay if the scorer needs their precision and the device has float64.
    """
    exact = scorer.needs_double and device.type != "mps"
    single = {} if exact else {torch.float64: torch.float32}
    if isinstance(scorer, CalibratedScorer):
        return replace(scorer, scorer=in_single(scorer.scorer, device))
    return map_tensors(scorer, lambda t: t.to(device=device, dtype=single.get(t.dtype, t.dtype)))


def watches_of(
    fitted: Fitted, alpha: float | None, methods: Methods | None, device: torch.device
) -> list[WatchedDetector]:
    """Return the guard's detectors on ``device``; all detectors if ``methods`` is None."""
    watches = []
    methods = [methods] if isinstance(methods, str) else methods
    held = ", ".join(sorted({word for word, _ in fitted.names})) or "nothing"
    names = {*fitted.scorers, *(word for word, _ in fitted.scorers)}
    if unknown := [name for name in methods or () if name not in names]:
        raise StateError(
            f"Guard: expected a detector among {held}, which the probe holds, got {unknown[0]!r}."
        )
    tasks = dict(zip(fitted.names, fitted.tasks, strict=True))
    for name, scorer in fitted.scorers.items():
        if methods is not None and name not in methods and name[0] not in methods:
            continue
        task, needs = tasks[name], needs_of(scorer)
        _check_live(name[0], task, needs, fitted.header)
        how = scorer.reduction if isinstance(scorer, CalibratedScorer) else None
        limit = _threshold(name, scorer, alpha)
        single = in_single(scorer, device)
        watches.append(
            WatchedDetector(name, task.keys, task.instrument.span, single, needs, limit, how)
        )
    if not watches:
        raise StateError(
            f"Guard: expected a probe with a detector, got a probe with {held}. Fit one, e.g. "
            "mahalanobis."
        )
    return watches


def _check_live(method: str, task: Task, needs: tuple[str, ...], header: dict[str, Any]) -> None:
    """Raise if a detector needs columns or step borders, which exist only in data."""
    reducers = {s["text"]: Reducer.parse(s["reducer"]).name for s in header["sites"]}
    spans = [f"the span of each step ({n})" for key in task.keys if "step" in (n := reducers[key])]
    if missing := [*(f"the column {n!r}" for n in needs if n not in BROUGHT), *spans]:
        raise InputError(
            f"Guard: {method} needs {missing[0]}, a column of the data, but a forward pass has "
            "no such column. Score whole items with `sonde score PROBE MODEL DATA` "
            "(sonde.score), or guard with other detectors (methods=[...])."
        )


def _threshold(name: Key, scorer: Scorer, alpha: float | None) -> float:
    if alpha is None:
        return BIGGEST
    if not isinstance(scorer, CalibratedScorer):
        raise CalibrationError(
            f"Guard: {name[0]} at {name[1]} is not calibrated, so there is no threshold for "
            f"alpha={alpha:g}. Calibrate the probe (sonde calibrate), or pass alpha=None.",
            1,
        )
    calibration = scorer.calibration
    try:
        if isinstance(calibration, ClassCalibration) and calibration.by == "predicted":
            for label in calibration.labels.tolist():
                calibration.threshold(alpha, label)  # a class with too few scores is told now
        return min(calibration.threshold(alpha), BIGGEST)
    except CalibrationError as error:
        error.add_note(f"at {name[0]} at {name[1]}")
        raise


def scored(
    watch: WatchedDetector,
    batch: Batch,
    cut: Collection[str] = (),
    known: Float[Tensor, "row"] | None = None,
) -> ScoredForward:
    """Return a detector's scores of a forward pass; ``known`` holds scores already computed.

    ``cut`` holds the keys of sites whose rows are only a part of their text.
    """
    names = (*watch.needs, *class_columns(watch.by))
    joined = JoinedRows.of(batch, watch.keys, names, watch.span)
    columns, classes = joined.columns[: len(watch.needs)], joined.columns[len(watch.needs) :]
    example, position = joined.example, joined.position
    scores = known
    if scores is None:
        scores = watch.scorer.score(*columns) if len(example) else torch.zeros(0)
    label = None if watch.by is None else classes_of(watch.by, classes, len(example))
    if watch.reduction not in (None, "max") and not set(watch.keys).isdisjoint(cut):
        raise InputError(
            f"Guard: {watch.name[0]} is calibrated for one score of a whole text "
            f"({watch.reduction!r}), got only a part of a text, as generate() passes it. "
            "Calibrate its rows (reduction='rows', --reduction rows), or call the model on the "
            "finished text."
        )
    if watch.reduction is None or not len(example):
        return ScoredForward(scores, example, position, label)
    reduced = watch.scorer.reduced(scores.double().cpu(), example, watch.reduction, *columns)
    row = reduced.row
    return ScoredForward(
        reduced.score, example[row], position[row], None if label is None else label[row]
    )
