"""Scan a model: read DATA (and OTHER), run all checks, and return the report's contents."""

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.plan import Plan, Split, groups_are_whole
from sonde.core.result import Result
from sonde.core.stream import Stream
from sonde.engine.progress import Bar
from sonde.engine.requests import Request, Task, requests
from sonde.findings.causes import name_causes
from sonde.findings.detectors import chosen_detectors, fitted_scorers
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.reference import Reference, reference_answers
from sonde.findings.evidence.facts import by_answers, data_evidence
from sonde.findings.evidence.gather import SAMPLED_COLUMNS, ScanStatistics, scan_statistics
from sonde.findings.evidence.modules.module_facts import ModelEvidence, model_evidence, read_modules
from sonde.findings.evidence.record import DataEvidence, Evidence, EvidenceParts, Gatherer
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.evidence.texts.text_losses import text_losses
from sonde.findings.evidence.versus.column_gain import column_gain
from sonde.findings.evidence.versus.comparison import VersusEvidence
from sonde.findings.measures import ScanMeasures, chosen_measures, measured, say_measures
from sonde.findings.rule import Check, Rule
from sonde.findings.settings import ScanSettings
from sonde.findings.trial_budget import trial_budget
from sonde.findings.words.step import Again
from sonde.run.fitting.fit import make_plan
from sonde.run.passes.cost import say_cost
from sonde.run.passes.directory import held
from sonde.run.passes.driver import Interrupted, Outcome, run_pass
from sonde.run.passes.memory import check_memory, estimate
from sonde.tap import LiveStream

_log = logging.getLogger("sonde")

HALF = 0.5
ANSWERS = (measure_lens, judge_heads, text_losses)
NO_MEASURES = ScanMeasures()
Results = Mapping[tuple[str, str], Result]
STOPPING = "stopping: partial results are reported; Ctrl-C again exits without a report"
STOPPED = "stopped by Ctrl-C before this check"
CUT = "stopped by Ctrl-C before the forward passes that it needs"
OTHER_AWAITED = "stopped by Ctrl-C before OTHER was read"
NO_FINITE_ROW = "no site has a row without NaN or infinity"


@dataclass(frozen=True, eq=False)
class Gathered:
    """Results of one pass over one data set."""

    statistics: ScanStatistics
    outcome: Outcome
    plan: Plan
    wall_seconds: float


@dataclass(frozen=True, eq=False)
class Scanned:
    """Everything that a report contains."""

    evidence: Evidence
    checks: tuple[Check, ...]
    rules: Mapping[str, Rule]
    settings: ScanSettings
    stream: Stream
    gathered: Gathered
    other: Gathered | None = None
    other_stream: Stream | None = None
    wall_seconds: float = 0.0
    partial: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    measured: Mapping[tuple[str, str], Result] = field(
        default_factory=dict[tuple[str, str], Result]
    )
    not_measured: Mapping[str, str] = field(default_factory=dict[str, str])
    again: Again | None = None


def scan_stream(
    stream: Stream,
    name: str = "data",
    *,
    other: Stream | None = None,
    other_name: str = "other",
    settings: ScanSettings | None = None,
    limited: bool = False,
) -> Scanned:
    """Run every check on a stream, and compare it with a second stream if given.

    Parameters
    ----------
    stream : Stream
        Pooled rows at each site and, as ``site|tokens`` or ``site|patches``, all rows.
    name : str
        The data as typed.
    other : Stream or None, default=None
        OTHER, read in the same way.
    settings : ScanSettings, optional
    limited : bool, default=False
        Whether only the first part of the data was taken.

    Raises
    ------
    InputError
        If a data set is empty, DATA has one example only, or both data sets are the same.
    """
    settings = settings or ScanSettings()
    chosen = settings.rules()
    began = time.monotonic()
    data = data_evidence(stream, name, limited)
    other_data = None if other is None else data_evidence(other, other_name, limited)
    _check_inputs(data, other_data, settings)
    logits = stream.first_batch().logits
    data = _one_for_all(stream, by_answers(data, logits), logits)
    if other_data is not None:
        other_data = by_answers(other_data, logits)
        own = data.labels_are_models and other_data.labels_are_models
        other_data = replace(other_data, labels_are_models=own)
    reference = reference_answers(settings.reference, data)
    split = Split(HALF, stream.seed) if other is not None else None
    detectors = chosen_detectors(stream, settings.chosen_detectors()) if other is not None else {}
    tasks = list(detectors.values())
    say_cost(stream, tasks, shown=settings.progress, deep=settings.deep)
    asked = chosen_measures(stream, settings, split, data.has_labels)
    model = _watched_model(stream, chosen, data.seed, settings.deep)
    second = None
    with held(settings.directory):
        with _listening(model, settings):
            gathered, stop = _gathered(stream, data, settings, split, tasks, asked)
        if gathered is None:
            assert stop is not None
            raise stop
        evidence = _evidence(gathered, stream, data, settings, model, stop is None, reference)
        results: Results = {}
        if stop is None:
            outcome, plan = gathered.outcome, gathered.plan
            results = measured(stream, asked, outcome.states, outcome.counters, plan, settings)
        if other is not None and other_data is not None and stop is None:
            elsewhere = settings.directory / "other" if settings.directory is not None else None
            aside = replace(settings, directory=elsewhere)
            second, stop = _gathered(other, other_data, aside, None, [], NO_MEASURES)
    n_units = gathered.plan.n_units
    if other is not None and other_data is not None:
        n_units += len(other.units(settings.unit_size)) - 1
        alpha = settings.alpha
        evidence = _against(evidence, gathered, second, other, other_data, detectors, split, alpha)
    checks = _run_all(chosen, evidence)
    if stop is None and any("<" in word or ">" in word for word in settings.fail_on):
        evidence.gathered.ask(ANSWERS, evidence)  # a gate on the answers must know them
    evidence.gathered.stop()
    n_done = gathered.outcome.done + (0 if second is None else second.outcome.done)
    is_whole = stop is None and not _was_cut(evidence, checks)
    return Scanned(
        evidence=evidence,
        checks=tuple(checks),
        rules={rule.code: rule for rule in chosen},
        settings=settings,
        stream=stream,
        gathered=gathered,
        other=second,
        other_stream=other,
        wall_seconds=time.monotonic() - began,
        partial=None if is_whole else (n_done, n_units),
        measured=results,
        not_measured=asked.left_out,
    )


def _one_for_all(stream: Stream, data: DataEvidence, logits: Tensor | None) -> DataEvidence:
    """Unset ``labels_are_models`` if the only output has one number per label column."""
    if not isinstance(stream, LiveStream) or logits is None or len(stream.probe.output) > 1:
        return data
    n = len(stream.inputs.label_columns)
    is_joined = n > 1 and logits.ndim == 2 and logits.shape[1] == n
    return replace(data, labels_are_models=False) if is_joined else data


def _watched_model(
    stream: Stream, chosen: list[Rule], seed: int, deep: bool
) -> ModelEvidence | None:
    """Return known facts about modules, if a rule needs the modules that ran in the pass."""
    if not isinstance(stream, LiveStream) or not any(rule.watches_modules for rule in chosen):
        return None
    return model_evidence(stream, seed, deep)


def _listening(model: ModelEvidence | None, settings: ScanSettings) -> AbstractContextManager[None]:
    """Record the modules that run in the pass; with workers, record nothing."""
    if model is None or model.silent is None or settings.crew.is_apart:
        return nullcontext()
    return model.silent.listening()


def _run_all(chosen: list[Rule], evidence: Evidence) -> list[Check]:
    """Run all rules and settle which findings explain others.

    A rule that reads the checks of the others runs last, on the settled checks.
    After Ctrl-C the remaining rules are withheld.
    """
    first: list[Check] = []
    for rule in (r for r in chosen if not r.reads_checks):
        if any(check.reason == STOPPED for check in first):
            first.append(rule.withheld(STOPPED))
            continue
        try:
            first.append(run_rule(rule, evidence))
        except KeyboardInterrupt:
            _log.warning(STOPPING)
            evidence.gathered.stop()
            first.append(rule.withheld(STOPPED))
    settled = {check.code: check for check in name_causes(evidence, first)}
    seen = replace(evidence, checks=tuple(settled.values()))
    for rule in chosen:
        if rule.reads_checks:
            settled[rule.code] = run_rule(rule, seen)
    return [settled[rule.code] for rule in chosen]


def _was_cut(evidence: Evidence, checks: list[Check]) -> bool:
    """Return whether Ctrl-C interrupted the computation of results."""
    reasons = {check.reason for check in checks if check.state == "withheld"}
    return STOPPED in reasons or bool(evidence.awaited)


def run_rule(rule: Rule, evidence: Evidence) -> Check:
    """Return the final state of a rule; an exception in the rule gives ``failed``."""
    if rule.theme == "versus" and evidence.awaited:
        return rule.withheld(evidence.awaited)
    try:
        evidence.gathered.missed.clear()
        with torch.no_grad():
            check = rule.check(evidence)
        if check.state == "not_applicable" and evidence.gathered.missed:
            return rule.withheld(CUT)
        starved = check.state == "withheld" and not evidence.sites
        return rule.withheld(NO_FINITE_ROW) if starved else check
    except Exception as error:  # one broken check must not take the others with it
        if not evidence.sites:
            return rule.withheld(NO_FINITE_ROW)
        _log.debug("check %s failed", rule.code, exc_info=True)
        return Check(rule.code, "failed", f"{type(error).__name__}: {error}")


def gather(
    stream: Stream,
    data: DataEvidence,
    settings: ScanSettings,
    split: Split | None,
    tasks: list[Task],
    measures: ScanMeasures = NO_MEASURES,
) -> Gathered:
    """Run the one pass of a scan."""
    statistics, wanted, plan = _plan(stream, data, settings, split, tasks, measures)
    say_measures(stream, measures, plan, settings.progress)
    needed = estimate(wanted, stream, plan, settings.crew.workers_here)
    check_memory(needed, settings.memory, settings.progress)
    began = time.monotonic()
    label, size = f"scan {data.name}", needed.state_bytes
    with Bar(label, plan.n_examples, settings.progress, state_bytes=size, keeps=True) as bar:
        outcome = run_pass(
            stream,
            wanted,
            plan,
            directory=settings.directory,
            crew=settings.crew,
            fresh=settings.fresh,
            tick=bar.advance,
        )
    return Gathered(statistics, outcome, plan, time.monotonic() - began)


def _plan(
    stream: Stream,
    data: DataEvidence,
    settings: ScanSettings,
    split: Split | None,
    tasks: list[Task],
    measures: ScanMeasures,
) -> tuple[ScanStatistics, dict[str, Request], Plan]:
    bounds = stream.units(settings.unit_size)
    whole = not stream.grouped or groups_are_whole(stream.group_keys, bounds)
    statistics = scan_statistics(stream, _columns(stream), data.has_labels, split, whole)
    wanted = {**statistics.requests(), **requests(tasks, split), **measures.requests(split)}
    wanted = dict(sorted(wanted.items()))
    threads = settings.crew.threads(settings.threads)
    plan = make_plan(stream, wanted, split, settings.unit_size, threads)
    return statistics, wanted, plan


def pass_of(
    stream: Stream, data: DataEvidence, settings: ScanSettings, split: Split | None
) -> tuple[dict[str, Request], Plan]:
    """Return the requests and the plan of a scan's pass, with detectors if there is a split."""
    asked = chosen_measures(stream, settings, split, data.has_labels)
    detectors = {} if split is None else chosen_detectors(stream, settings.chosen_detectors())
    return _plan(stream, data, settings, split, [*detectors.values()], asked)[1:]


def _gathered(
    stream: Stream,
    data: DataEvidence,
    settings: ScanSettings,
    split: Split | None,
    tasks: list[Task],
    measures: ScanMeasures,
) -> tuple[Gathered | None, Interrupted | None]:
    """Return the results of a pass; after Ctrl-C the committed results, or None."""
    try:
        return gather(stream, data, settings, split, tasks, measures), None
    except Interrupted as stop:
        if stop.partial.done == 0:
            return None, stop
        statistics, _, plan = _plan(stream, data, settings, split, tasks, measures)
        return Gathered(statistics, stop.partial, plan, 0.0), stop


def _columns(stream: Stream) -> set[str]:
    """Return the sampled columns that a stream provides, read from its first examples."""
    batch = stream.first_batch()
    columns = {"label", "order"} | (set(batch.extra) & set(SAMPLED_COLUMNS))
    if batch.logits is not None:
        columns.add("logits")
    if batch.length is not None:
        columns.add("length")
    return columns


def _check_inputs(data: DataEvidence, other: DataEvidence | None, settings: ScanSettings) -> None:
    if settings.detectors and other is None:
        raise InputError("scan: detectors= score a second data set. Pass it as versus=.")
    if data.n == 0:
        raise InputError(f"scan: {data.name} is empty.")
    if data.n == 1:
        raise InputError(
            f"scan: expected at least two examples, got one in {data.name}. A scan compares rows."
        )
    if other is None:
        return
    if other.n == 0:
        raise InputError(f"scan: {other.name} is empty.")
    if list(data.keys) == list(other.keys):
        raise InputError(
            f"scan: {data.name} and {other.name} hold the same examples. "
            "Compare with another data set, or leave out --versus."
        )


def _evidence(
    gathered: Gathered,
    stream: Stream,
    data: DataEvidence,
    settings: ScanSettings,
    model: ModelEvidence | None,
    complete: bool,
    reference: Reference | None,
) -> Evidence:
    """Return the evidence of the pass, with functions for parts that rules may request."""
    outcome, statistics = gathered.outcome, gathered.statistics
    evidence = Evidence(
        sites=statistics.sites(outcome.states, outcome.counters),
        columns=statistics.sampled_columns(outcome.states),
        answer_counts=statistics.answer_counts(outcome.states),
        data=data,
        counters=outcome.counters,
        stochastic=settings.stochastic,
        deep=settings.deep,
        fail_on=settings.fail_on,
        reference=reference,
    )
    if not isinstance(stream, LiveStream):
        return evidence
    parts: dict[Gatherer[Any], Any] = {} if model is None else {read_modules: model}
    if not complete and stream.model.task != "causal":
        parts[measure_lens] = lens_evidence(stream)  # has nothing to read
    only = None if evidence.sites else (read_modules, measure_lens)
    return replace(
        evidence,
        gathered=EvidenceParts(stream, parts, only, cut=not complete),
        budget=trial_budget(stream, evidence, settings.progress),
    )


def _against(
    evidence: Evidence,
    gathered: Gathered,
    second: Gathered | None,
    other: Stream,
    other_data: DataEvidence,
    detectors: dict[tuple[str, str], Task],
    split: Split | None,
    alpha: float,
) -> Evidence:
    """Add OTHER to the evidence; if OTHER was not read, its checks are withheld."""
    if second is None:
        return replace(evidence, awaited=OTHER_AWAITED)
    states, counters = second.outcome.states, second.outcome.counters
    versus = VersusEvidence(
        other_sites={s.schema.key: s for s in second.statistics.sites(states, counters)},
        other_columns=second.statistics.sampled_columns(states),
        other_data=other_data,
        scorers=fitted_scorers(detectors, gathered.outcome.states, split),
        alpha=alpha,
        asked=tuple(detectors),
        mended=partial(column_gain, other),
        other_counters=counters,
    )
    return replace(evidence, versus=versus)
