"""``sonde.fit``: fit all instruments at all sites in one pass, or two if an instrument needs it."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.keywords import answered
from sonde.core.plan import UNIT_SIZE, Plan, Split
from sonde.core.reduction import AUTO
from sonde.core.statistic import Learner
from sonde.core.stream import Stream
from sonde.engine.folding import check_whole
from sonde.engine.progress import Bar
from sonde.engine.requests import Request, States, Task
from sonde.files.places import to_path
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.header import OWN_LABELS, make_header, unit_entry
from sonde.run.fitting.prepared import Prepared, prepare
from sonde.run.instruments.stages import next_tasks
from sonde.run.instruments.tasks import ErrorSample, error_sample, requests_of
from sonde.run.instruments.words import Asked
from sonde.run.passes.cost import say_cost
from sonde.run.passes.crew import Crew, Runner
from sonde.run.passes.directory import held
from sonde.run.passes.driver import Outcome, run_pass
from sonde.run.passes.hand_out import gathered
from sonde.run.passes.memory import Estimate, check_memory, commit_level, estimate
from sonde.run.passes.ranges import RangeJob
from sonde.run.passes.ranks import Ranks, is_shared_model
from sonde.run.reading.checking import check_rows

DEFAULT_HELD = 0.2


@answered("Read the model first: sonde.fit(METHOD, sonde.read(model, data))")
def fit(
    instruments: Asked | Iterable[Asked],
    stream: Stream | str | Path,
    *,
    calibrate: float | int = DEFAULT_HELD,
    reduction: str = AUTO,
    unit_size: int = UNIT_SIZE,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    directory: str | Path | None = None,
    fresh: bool = False,
    memory: int | None = None,
    progress: bool = True,
    group: Any = None,
) -> Fitted:
    """Fit instruments on a stream in one pass (two if an instrument asks for a second pass).

    Parameters
    ----------
    instruments : Instrument, Rewrite, str or iterable of these
        A rewrite stands for the instruments that it reads. Words are those of the command line,
        ``"knn(k=10)"``. Each instrument is fitted at every site of the stream, at each pair of
        neighbouring sites, or at all sites together. An instrument that reads the logits alone is
        the same at every site and is fitted once, at the last site.
    stream : Stream or path
        Live, stored, or plain arrays; or the folder of a store.
    calibrate : float, default=0.2
        Share of the groups that is held out if a detector is among the instruments; 0 = none. Of
        two or more groups at least one is held out, and at least one is fitted.
    reduction : str, default="auto"
        What a p-value is about if an example has several rows: one score of the example by
        ``max``, ``mean`` or ``topk_mean(k)``, or each of its ``rows``. "auto" is ``max`` for
        patches of images, else ``rows``.
    unit_size : int, default=256
        Examples in a unit.
    workers : int, default=0
        Processes, or actors on Ray; the result is the same bits for any number of at least one.
    threads : int or None, default=None
        Threads of each worker (None is 1 with workers); part of the plan.
    runner : {"local", "ray"}, default="local"
        "ray" works on a cluster; ``workers=0`` then means as many as the cluster has room for.
    address : str or None, default=None
        The cluster, ``host:port`` or ``auto``; None starts one on this machine.
    directory : path, optional
        Run directory: committed work survives a kill, and the same call goes on from it.
    fresh : bool, default=False
        Drop what a run of another plan left in the directory.
    memory : int or None, default=None
        Bytes that the states may take; None is 80 % of the free memory.
    progress : bool, default=True
        A bar on stderr after two seconds.
    group : ProcessGroup, optional
        Ranks of ``torch.distributed`` that share the work, as ``distributed.group.WORLD`` under
        ``torchrun``. Every rank makes the same call with all of the data and gets the same bytes;
        rank 0 alone writes and shows the bar.

    Returns
    -------
    Fitted

    Raises
    ------
    InputError
        If there is no data, no instrument, or not enough memory.
    Interrupted
        On Ctrl-C; committed work is kept in ``directory``.

    Examples
    --------
    >>> import torch
    >>> from sonde.core import Stream
    >>> from sonde.detect import Mahalanobis
    >>> rows = (torch.arange(2000.0) ** 2 % 1009).reshape(500, 4)
    >>> fitted = fit(Mahalanobis(), Stream.of(rows), progress=False)
    >>> fitted.result("mahalanobis").calibration.n
    97
    """
    settled = prepare(instruments, stream, calibrate, reduction)
    ranks = None if group is None else Ranks(group)
    crew = Crew(workers, runner, address, ranks=ranks)
    progress = progress and crew.is_first
    settings = _Settings(crew, crew.threads(threads), fresh, memory, progress)
    place = to_path(directory) if directory is not None and crew.is_first else None
    check_rows(settled.stream)
    say_cost(settled.stream, settled.tasks, progress)
    for text in settled.notes if progress else ():
        sys.stderr.write(f"note: {text}\n")
    with held(place), gathered(crew, settings.threads):
        states, units, counters, sample = _all_passes(settled, settings, unit_size, place)
    header = make_header(settled.stream, units, counters, settled.split)
    if settled.stream.labels_number_outputs:
        header["data"][OWN_LABELS] = True
    return Fitted(settled.tasks, states, header, settled.split, sample)


@dataclass(frozen=True)
class _Settings:
    """Settings of how passes run."""

    crew: Crew
    threads: int
    fresh: bool
    memory: int | None
    progress: bool


def _all_passes(
    settled: Prepared,
    settings: _Settings,
    unit_size: int,
    place: Path | None,
) -> tuple[States, list[dict[str, Any]], dict[str, int], ErrorSample | None]:
    """Return states and units of all passes, counters of the first pass, and the last error sample.

    The error sample is that of the last pass, which may need columns that no earlier pass needs.
    """
    states: States = {}
    units: list[dict[str, Any]] = []
    counters: dict[str, int] = {}
    sample: ErrorSample | None = None
    stream, split = settled.stream, settled.split
    asked, following, stage = [*settled.tasks], [*settled.tasks], 0
    while following:
        wanted, sample = requests_of_pass(asked, stream, split)
        wanted = {i: r for i, r in wanted.items() if i not in states}
        if wanted:
            plan = make_plan(stream, wanted, split, unit_size, settings.threads, stage)
            outcome = _one_pass(stream, wanted, plan, settings, _stage(place, stage))
            states = {**states, **outcome.states}
            counters = counters or outcome.counters
            units.append(unit_entry(plan, stream))
        following, stage = next_tasks(following, states, split), stage + 1
        asked = [*asked, *following]
    return states, units, counters, sample


def requests_of_pass(
    tasks: Sequence[Task], stream: Stream, split: Split | None
) -> tuple[dict[str, Request], ErrorSample | None]:
    """Return the requests of a pass for these tasks, and the sample from which errors come."""
    sample = error_sample(tasks, stream, split)
    return requests_of(tasks, sample, split), sample


def _stage(directory: Path | None, stage: int) -> Path | None:
    if directory is None:
        return None
    return directory if stage == 0 else directory / f"pass{stage + 1}"


def make_plan(
    stream: Stream,
    wanted: dict[str, Request],
    split: Split | None,
    unit_size: int,
    threads: int | None,
    stage: int = 0,
) -> Plan:
    """Return the plan of a pass; raise if a unit cuts a group or example that must stay whole."""
    bounds = stream.units(unit_size)
    check_whole(stream, wanted, bounds)
    return Plan(
        stream=stream.identity(),
        requests=tuple(wanted),
        bounds=tuple(bounds),
        split=split,
        stage=stage,
        commit_level=commit_level(wanted, stream.schema, len(bounds) - 1),
        threads=threads,
    )


def _one_pass(
    stream: Stream,
    wanted: dict[str, Request],
    plan: Plan,
    settings: _Settings,
    directory: Path | None,
) -> Outcome:
    needed: Estimate = estimate(wanted, stream, plan, settings.crew.workers_here)
    drive = partial(_driven, stream, wanted, plan, settings, directory, needed)
    ranks = settings.crew.ranks
    if ranks is None:
        return drive()
    rest = {i: r for i, r in wanted.items() if not isinstance(r.statistic, Learner)}
    if len(rest) < len(wanted) and is_shared_model(stream):
        raise InputError(
            "fit: expected methods of one pass for a model that ranks hold in parts, got "
            f"{next(r for i, r in wanted.items() if i not in rest)!r}, which trains step by step. "
            "Store the rows first, and fit on the store."
        )
    job = RangeJob(stream, settings.threads, rest, plan, Path(), "", durable=False)
    return ranks.shared(job, plan.id, drive)


def _driven(
    stream: Stream,
    wanted: dict[str, Request],
    plan: Plan,
    settings: _Settings,
    directory: Path | None,
    needed: Estimate,
) -> Outcome:
    check_memory(needed, settings.memory, settings.progress)
    label = "fit" if plan.stage == 0 else f"fit, pass {plan.stage + 1}"
    size = needed.state_bytes
    learners = [r.statistic for r in wanted.values() if isinstance(r.statistic, Learner)]
    n_walks = max((learner.n_passes() for learner in learners), default=0)
    n_walks += len(learners) < len(wanted)
    label += f", {n_walks} walks at most" if learners else ""
    total, keeps = n_walks * plan.n_examples, directory is not None
    with Bar(label, total, settings.progress, state_bytes=size, keeps=keeps) as bar:
        return run_pass(
            stream,
            wanted,
            plan,
            directory=directory,
            crew=settings.crew,
            fresh=settings.fresh,
            tick=bar.advance,
        )
