"""The detectors that a scan fits on one data set to score another."""

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import cast

import torch

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError, SondeError
from sonde.core.instrument import Detector, score_needs
from sonde.core.perturbation import Perturbation
from sonde.core.plan import Split
from sonde.core.site import HEAD_INPUT
from sonde.core.stream import Stream
from sonde.detect import KNN, Energy, Mahalanobis
from sonde.engine.passes import states_of
from sonde.engine.requests import States, Task
from sonde.findings.evidence.gather import SAMPLED_COLUMNS
from sonde.run.instruments.asked import asking_logits, at_head, head_sites, need
from sonde.run.instruments.catalogue import word_of_class
from sonde.stats import Calibrated, CalibratedScorer
from sonde.tap import LiveStream

_log = logging.getLogger("sonde")

SCAN_NEIGHBOURS = 2048


def chosen_detectors(stream: Stream, chosen: Sequence[Detector]) -> dict[tuple[str, str], Task]:
    """Return the detectors to fit at each pooled site; detectors of logits only at the last site.

    Detectors of the final linear layer stand where its input was read. The name of each task is
    the detector's class, with the parameters that the width of the rows changed, and its site.
    """
    has_logits = stream.first_batch().logits is not None
    pooled = [s for s in stream.schema if "|" not in s.key]
    chosen = chosen or (KNN(m=SCAN_NEIGHBOURS), Mahalanobis(), *([Energy()] if has_logits else []))
    names = [type(method).__name__ for method in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"scan: expected each detector once, got {', '.join(names)}.")
    tasks: dict[tuple[str, str], Task] = {}
    heads = _heads(chosen, stream)
    for method in chosen:
        _check_single_pass(method)
        for s in _sites_of(method, pooled, heads):
            sized = cast(Detector, method.at_width(s.dim))
            tasks[_name_at(sized, method), s.key] = Task(Calibrated(sized), (s.key,))
    return tasks


def _name_at(mine: Detector, asked: Detector) -> str:
    """Return a detector's class name with the parameters that the row width changed."""
    changed = {f.name: getattr(mine, f.name) for f in fields(mine)}  # type: ignore[arg-type]
    changed = {k: v for k, v in changed.items() if v != getattr(asked, k)}
    words = ", ".join(f"{name}={value}" for name, value in changed.items())
    return type(mine).__name__ + (f"({words})" if words else "")


def with_columns_of(stream: LiveStream, chosen: Sequence[Detector]) -> LiveStream:
    """Return a stream that also provides the columns that detectors need, such as logits."""
    steps = [method.reading()["perturb"] for method in chosen if "perturb" in method.reading()]
    if steps:
        stream = replace(stream, perturb=Perturbation.from_json(steps[0]))
    if need(chosen, "logits"):
        stream = cast(LiveStream, asking_logits(stream))
    if any(map(at_head, chosen)) and not _heads(chosen, stream):
        stream = replace(stream, sites=(*stream.sites, HEAD_INPUT))
    return stream


def _heads(chosen: Sequence[Detector], stream: Stream) -> set[str]:
    """Return the sites of pooled rows that enter the final linear layer."""
    return {key for key in head_sites(chosen, stream) or () if "|" not in key}


def _sites_of(method: Detector, pooled: list[SiteSchema], heads: set[str]) -> list[SiteSchema]:
    """Return the sites of a detector: all sites, the final layer, or one site for the logits."""
    if not at_head(method):
        return pooled if "x" in score_needs(method) else pooled[-1:]
    if not heads:
        raise InputError(
            f"scan: {type(method).__name__} reads the input of the model's final linear "
            "layer, which these stored rows do not contain. Scan a live classifier, or leave "
            "the detector out."
        )
    return [s for s in pooled if s.key in heads][-1:]


def _check_single_pass(method: Detector) -> None:
    """Raise if a detector cannot be fitted or score in a single pass over one site."""
    reads = method.all_reads().values()
    needs = {*score_needs(method), *(n for read in reads for n in read.statistic.needs())}
    strange = sorted(set(score_needs(method)) - {"x", *SAMPLED_COLUMNS})
    reducer = method.reading().get("reducer", "")
    why = ""
    if method.span != "one":
        why = "uses several sites at once"
    elif "grad" in needs:
        why = "takes gradients"
    elif any(read.statistic.merging == "none" for read in reads):
        why = "learns in several passes"
    elif strange:
        why = f"scores by {', '.join(strange)}"
    elif reducer == "predictions":
        why = "scores tokens by how they were predicted"
    elif type(method).then is not Detector.then:
        why = "is fitted in several passes"
    if why:
        word = word_of_class(type(method))
        raise InputError(
            f"scan: {type(method).__name__} {why}; a scan fits detectors in its own pass, on one "
            f"row of each example at one site. Use `sonde fit {word} MODEL DATA -o probe.sonde`, "
            "then `sonde score probe.sonde MODEL OTHER`."
        )


def fitted_scorers(
    tasks: dict[tuple[str, str], Task], states: States, split: Split | None
) -> dict[tuple[str, str], CalibratedScorer]:
    """Return the scorer of each detector that could be fitted, by its name."""
    scorers: dict[tuple[str, str], CalibratedScorer] = {}
    for name, task in tasks.items():
        instrument = task.instrument
        if not isinstance(instrument, Calibrated):
            continue
        try:
            with torch.no_grad():
                scorer = instrument.result(**states_of(task, states, split))
        except SondeError as error:
            _log.info("%s at %s: %s", type(instrument.detector).__name__, task.keys[0], error)
            continue
        scorers[name] = scorer
    return scorers
