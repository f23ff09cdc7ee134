"""Measures that a scan computes in addition to its checks: requested, or of ``--deep``."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sonde.core.errors import InputError, SondeError, SondeWarning
from sonde.core.instrument import Detector, Instrument
from sonde.core.plan import Plan, Split
from sonde.core.result import Result
from sonde.core.state import digest
from sonde.core.stream import Stream
from sonde.core.wording import gib, plural
from sonde.engine.requests import Request, States, Task
from sonde.findings.settings import ScanSettings
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.header import make_header, unit_entry
from sonde.run.instruments.asked import head_sites, need, ready
from sonde.run.instruments.catalogue import word_of_class
from sonde.run.instruments.entries import names_of
from sonde.run.instruments.stages import has_stages
from sonde.run.instruments.tasks import ErrorSample, assign, error_sample, requests_of
from sonde.run.instruments.words import instruments_of
from sonde.run.passes.cost import TWICE
from sonde.run.passes.memory import estimate
from sonde.tap import LiveStream

DEEP: Final = (
    "two_nn,mle_dimension,uniformity,coding_rate,unit_entropy,neural_collapse,cluster_indices,"
    "v_information"
)


@dataclass(frozen=True, eq=False)
class ScanMeasures:
    """The measures of a scan, and the sites at which each is computed.

    Parameters
    ----------
    tasks : tuple of Task
        Tasks that join the single pass of the scan.
    sample : ErrorSample or None
        The sample from which the error bars of ``tasks`` come.
    later : tuple of Instrument
        Measures that take passes of their own.
    later_tasks : tuple of Task
        The tasks of ``later``: each measure at its sites.
    left_out : dict of str to str
        Why a measure of a deep scan cannot be computed here, by its word.
    """

    tasks: tuple[Task, ...] = ()
    sample: ErrorSample | None = None
    later: tuple[Instrument, ...] = ()
    later_tasks: tuple[Task, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    def requests(self, split: Split | None) -> dict[str, Request]:
        """Return the requests for the states that the scan's pass gathers for ``tasks``."""
        return requests_of(self.tasks, self.sample, split) if self.tasks else {}


def chosen_measures(
    stream: Stream, settings: ScanSettings, split: Split | None, has_labels: bool
) -> ScanMeasures:
    """Return the requested measures, and with ``deep`` the applicable ones of ``DEEP``.

    Raises
    ------
    InputError
        If a measure that was asked for by name cannot be computed on these data.
    """
    asked = instruments_of(settings.measures)
    further = instruments_of(DEEP) if settings.deep else []
    distinct = {digest(instrument): instrument for instrument in (*asked, *further)}
    tasks, later, later_tasks = list[Task](), list[Instrument](), list[Task]()
    left_out: dict[str, str] = {}
    for instrument in distinct.values():
        word = word_of_class(type(instrument))
        try:
            own_tasks = _tasks(instrument, stream, split, has_labels)
        except InputError as error:
            if instrument in asked:
                raise InputError(f"scan: --measures {word}: {error}") from None
            left_out[word] = str(error).removesuffix(".")
            continue
        if any(map(_walks_again, own_tasks)):
            later.append(instrument)
            later_tasks += own_tasks
        else:
            tasks += own_tasks
    sample = error_sample(tasks, stream, split)
    return ScanMeasures(tuple(tasks), sample, tuple(later), tuple(later_tasks), left_out)


def _tasks(
    instrument: Instrument, stream: Stream, split: Split | None, has_labels: bool
) -> list[Task]:
    """Return a measure's tasks; raise with the reason if the measure cannot be computed."""
    if isinstance(instrument, Detector):
        raise InputError(
            "it is a detector, not a measure. `sonde methods measure` lists the measures."
        )
    if need([instrument], "label") and not has_labels:
        raise InputError("it needs labels, and the data have none")
    if need([instrument], "grad"):
        raise InputError("it takes gradients. Use `sonde fit`, with an objective.")
    stream = ready([instrument], stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # places left out are not in the table
        return assign(
            [instrument],
            stream.schema,
            split,
            heads=head_sites([instrument], stream),
            grouped=stream.grouped,
        )


def _walks_again(task: Task) -> bool:
    reads = task.instrument.all_reads().values()
    return has_stages(task) or any(read.statistic.merging == "none" for read in reads)


def say_measures(stream: Stream, found: ScanMeasures, plan: Plan, shown: bool) -> None:
    """Print the cost of each measure to stderr before any data are read."""
    if not shown:
        return
    tasks = (*found.tasks, *found.later_tasks)
    names = [name for name, _ in names_of(tasks)]
    for name in dict.fromkeys(names):
        own_tasks = [task for task, its in zip(tasks, names, strict=True) if its == name]
        size = estimate(requests_of(own_tasks, None, plan.split), stream, plan).state_bytes
        where = plural(len(own_tasks), "site")
        when = (
            "computed while the scan reads the data"
            if own_tasks[0] in found.tasks
            else f"computed in {TWICE} of its own"
        )
        sys.stderr.write(f"note: {name}: {where}, {gib(size)} of states, {when}.\n")
    _say_left_out(found.left_out)


def _say_left_out(reasons: Mapping[str, str]) -> None:
    for what, reason in reasons.items():
        sys.stderr.write(f"note: {what} is left out: {reason}.\n")


def measured(
    stream: Stream,
    found: ScanMeasures,
    states: States,
    counters: dict[str, int],
    plan: Plan,
    settings: ScanSettings,
) -> dict[tuple[str, str], Result]:
    """Return each measure's result at each site; fit the measures that need more passes."""
    results: dict[tuple[str, str], Result] = {}
    left_out_before = set(found.left_out)
    if found.tasks:
        header = make_header(stream, [unit_entry(plan, stream)], counters, plan.split)
        results |= _results(Fitted(found.tasks, states, header, plan.split, found.sample), found)
    if found.later:
        again = replace(stream, further=()) if isinstance(stream, LiveStream) else stream
        fitted = fit(
            found.later,
            again,
            calibrate=0,
            unit_size=settings.unit_size,
            workers=settings.workers,
            threads=settings.threads,
            runner=settings.runner,
            address=settings.address,
            directory=None if settings.directory is None else settings.directory / "measures",
            memory=settings.memory,
            progress=settings.progress,
        )
        results |= _results(fitted, found)
    if settings.progress:
        _say_left_out({k: v for k, v in found.left_out.items() if k not in left_out_before})
    return results


def _results(fitted: Fitted, found: ScanMeasures) -> dict[tuple[str, str], Result]:
    """Return the results that could be computed; log the reason for each missing one."""
    results: dict[tuple[str, str], Result] = {}
    for word, site in fitted.names:
        try:
            results[word, site] = fitted.result(word, site)
        except SondeError as error:
            found.left_out[f"{word} at {site}"] = str(error).removesuffix(".")
    return results
