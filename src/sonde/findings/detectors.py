"""The detectors that a scan fits on one data set to score another."""

import logging
from collections.abc import Sequence

import torch

from sonde.core.errors import InputError, SondeError
from sonde.core.instrument import Detector, score_needs
from sonde.core.passes import states_of
from sonde.core.plan import Split
from sonde.core.requests import States, Task
from sonde.core.site import HEAD_INPUT
from sonde.core.stream import Stream
from sonde.detect import KNN, Energy, Mahalanobis
from sonde.findings.gather import SAMPLED_COLUMNS, WIDEST_FULL
from sonde.stats import Calibrated, CalibratedScorer

_log = logging.getLogger("sonde")

SCAN_NEIGHBOURS = 2048


def chosen_detectors(stream: Stream, chosen: Sequence[Detector]) -> list[tuple[Task, bool]]:
    """Return every detector at every pooled site, those of logits alone at the last.

    With each, whether it will be fitted: not where a full covariance would be too wide.
    """
    has_logits = stream.first_batch().logits is not None
    pooled = [s for s in stream.schema if "|" not in s.key]
    chosen = chosen or (KNN(m=SCAN_NEIGHBOURS), Mahalanobis(), *([Energy()] if has_logits else []))
    names = [type(method).__name__ for method in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"scan: expected each detector once, got {', '.join(names)}.")
    found: list[tuple[Task, bool]] = []
    for method in chosen:
        _check_alone(method)
        sites = pooled if "x" in score_needs(method) else pooled[-1:]
        for s in sites:
            fits = s.dim <= WIDEST_FULL or not isinstance(method, Mahalanobis)
            found.append((Task(Calibrated(method), (s.key,)), fits))
    return found


def _check_alone(method: Detector) -> None:
    """Refuse a detector that one pass over rows of one site cannot fit, or cannot score."""
    reads = method.all_reads().values()
    needs = {*score_needs(method), *(n for read in reads for n in read.statistic.needs())}
    why = ""
    if method.span != "one":
        why = "reads several sites at once"
    elif "grad" in needs:
        why = "reads gradients"
    elif "head" in needs or method.reading().get("sites") == HEAD_INPUT:
        why = "reads the input of the model's final layer"
    elif not set(score_needs(method)) <= {"x", *SAMPLED_COLUMNS}:
        why = f"scores by {', '.join(sorted(set(score_needs(method)) - {'x', *SAMPLED_COLUMNS}))}"
    elif type(method).then is not Detector.then:
        why = "is fitted in several passes"
    elif any(read.statistic.merging == "none" for read in reads):
        why = "learns in several passes"
    if why:
        raise InputError(
            f"scan: {type(method).__name__} {why}; a scan fits detectors on rows of one site in "
            "its own pass. Use sonde fit, then sonde evaluate."
        )


def fitted_scorers(
    tasks: list[Task], states: States, split: Split | None
) -> dict[tuple[str, str], CalibratedScorer]:
    """Return the scorer of each task whose detector could be fitted, by ``name_of``."""
    found: dict[tuple[str, str], CalibratedScorer] = {}
    for task in tasks:
        instrument = task.instrument
        if not isinstance(instrument, Calibrated):
            continue
        try:
            with torch.no_grad():
                scorer = instrument.result(**states_of(task, states, split))
        except SondeError as error:
            _log.info("%s at %s: %s", type(instrument.detector).__name__, task.keys[0], error)
            continue
        found[name_of(task)] = scorer
    return found


def name_of(task: Task) -> tuple[str, str]:
    """Return the class of a task's detector, and its site."""
    instrument = task.instrument
    assert isinstance(instrument, Calibrated)
    return type(instrument.detector).__name__, task.keys[0]
