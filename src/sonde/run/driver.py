"""One pass of a plan: which ranges of units are worked on, by whom, and where they are committed.

Everything that is committed goes through the ledger as an aligned range of units; nothing is ever
added to a state on disk. So a pass can be interrupted or killed anywhere and goes on from there
with the same bits.
"""

import multiprocessing
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.core.errors import InputError, SondeError
from sonde.core.folding import fold, grow
from sonde.core.passes import observe_unit
from sonde.core.plan import Plan
from sonde.core.requests import Request, States
from sonde.core.statistic import Learner
from sonde.core.stream import Stream
from sonde.run.chain import walk_chain
from sonde.run.ledger import Ledger
from sonde.run.lock import RunLock

Tick = Callable[[int], None]


class Interrupted(SondeError):
    """A pass was stopped by the user; what was committed is kept.

    Attributes
    ----------
    partial : Outcome
        The states of what is committed.
    first : bool
        Whether it was the first pass of a run.
    """

    def __init__(self, partial: "Outcome", directory: Path | None, first: bool = True) -> None:
        self.partial, self.directory, self.first = partial, directory, first
        super().__init__(
            f"interrupted after {partial.done} of {partial.total} units"
            f"{', in training.' if partial.learning and partial.done == partial.total else '.'}"
            f"{_kept(partial, directory, first)}"
        )


@dataclass(frozen=True)
class Outcome:
    """The states of a pass and what it counted; ``done`` of ``total`` units.

    ``learning`` says that learners were not trained to the end.
    """

    states: States
    counters: dict[str, int]
    done: int
    total: int
    learning: bool = False

    @property
    def complete(self) -> bool:
        """Whether every unit is in and every learner trained."""
        return self.done == self.total and not self.learning


def _kept(partial: Outcome, directory: Path | None, first: bool) -> str:
    """Return what of a pass that was stopped is kept, and how to go on."""
    if partial.done == 0 and first:
        return (
            " No unit was done, so nothing is kept; run the same command again. A smaller "
            "--unit-size keeps more."
        )
    if directory is None:
        return ""
    return (
        f" What is done is kept in {directory}; the same command goes on from there "
        "(--resume makes sure of it)."
    )


def run_pass(
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    *,
    directory: Path | None = None,
    workers: int = 0,
    fresh: bool = False,
    tick: Tick = lambda _: None,
) -> Outcome:
    """Run every unit of a plan that is not committed yet, and return the folded states.

    Parameters
    ----------
    stream : Stream
    wanted : mapping of id to Request
    plan : Plan
    directory : Path or None, default=None
        The run directory; a temporary one without fsync where None.
    workers : int, default=0
        Processes beside this one; 0 works in this process.
    fresh : bool, default=False
        Drop what a run of another plan left in the directory.
    tick : callable
        Called with the number of examples after each unit.

    Raises
    ------
    Interrupted
        On Ctrl-C, after what is finished has been committed.
    """
    chain = {i: r for i, r in wanted.items() if isinstance(r.statistic, Learner)}
    rest = {i: r for i, r in wanted.items() if i not in chain}
    with _directory(directory) as (place, durable), _lock(directory):
        ledger = Ledger(place, plan, rest, durable=durable, fresh=fresh)
        try:
            if workers > 0:
                _with_workers(ledger, stream, rest, plan, workers, tick)
            else:
                _alone(ledger, stream, rest, plan, tick)
            with _threads(plan.threads):
                learned = walk_chain(place, stream, chain, plan, durable, tick)
        except KeyboardInterrupt:
            ledger.compact()
            states, counters, _ = ledger.partial()
            states = {**states, **dict.fromkeys(chain)}
            partial = Outcome(states, counters, ledger.n_done, plan.n_units, bool(chain))
            raise Interrupted(partial, directory, plan.stage == 0) from None
        states, counters = ledger.finish()
    return Outcome({**states, **learned}, counters, plan.n_units, plan.n_units)


@contextmanager
def _directory(directory: Path | None) -> Iterator[tuple[Path, bool]]:
    if directory is not None:
        yield directory, True
        return
    with tempfile.TemporaryDirectory(prefix="sonde-") as name:
        yield Path(name) / "pass.run", False


def _lock(directory: Path | None) -> AbstractContextManager[Any]:
    return nullcontext() if directory is None else RunLock(directory)


def _alone(
    ledger: Ledger, stream: Stream, wanted: Mapping[str, Request], plan: Plan, tick: Tick
) -> None:
    with _threads(plan.threads):
        for start, stop in ledger.missing():
            commit_range(ledger, stream, wanted, plan, start, stop, tick)
            ledger.compact()


def commit_range(
    ledger: Ledger,
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    start: int,
    stop: int,
    tick: Tick = lambda _: None,
) -> None:
    """Work on the units ``[start, stop)`` and commit them as aligned ranges, also when stopped."""
    tree: list[tuple[int, States]] = []
    counts: list[Counter[str]] = []
    try:
        for unit in range(start, stop):
            first, last = plan.bounds[unit], plan.bounds[unit + 1]
            counts.append(Counter())
            states = observe_unit(stream.batches(first, last), wanted, plan.split, counts[-1])
            tree = grow(wanted, tree, (0, states))
            tick(last - first)
    except BaseException:
        _put_finished(ledger, start, tree, counts)
        raise
    ledger.put(start, stop, fold(wanted, tree), dict(_total(counts)))


def _put_finished(
    ledger: Ledger, start: int, tree: list[tuple[int, States]], counts: list[Counter[str]]
) -> None:
    """Commit the aligned ranges that were done when a range was stopped."""
    first = start
    for level, states in tree:
        last = first + (1 << level)
        mine = _total(counts[first - start : last - start])
        ledger.put(first, last, states, dict(mine))
        first = last


def _total(counts: list[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counts:
        total.update(counter)
    return total


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_JOB: dict[str, Any] = {}


def _start_worker(job: dict[str, Any]) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _JOB.update(job)
    torch.set_num_threads(job["plan"].threads or 1)


def _work(start: int, stop: int) -> int:
    ledger = Ledger(
        _JOB["directory"], _JOB["plan"], _JOB["wanted"], durable=_JOB["durable"], worker=True
    )
    commit_range(ledger, _JOB["stream"], _JOB["wanted"], _JOB["plan"], start, stop)
    return _JOB["plan"].bounds[stop] - _JOB["plan"].bounds[start]


def _with_workers(
    ledger: Ledger,
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    workers: int,
    tick: Tick,
) -> None:
    """Hand out ranges to processes; only this process compacts."""
    job = {
        "directory": ledger.directory,
        "durable": ledger.durable,
        "plan": plan,
        "wanted": dict(wanted),
        "stream": stream,
    }
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(job,),
    )
    try:
        with _sigint_held():
            futures = _submitted(pool, ledger.missing())
        for future in as_completed(futures):
            tick(future.result())
            ledger.compact()
    except BrokenProcessPool as error:
        raise InputError(
            "run: a worker process died before it could answer. Its model or data may not be "
            "picklable or its memory ran out; committed units are kept. Run again, or use "
            "--workers 0."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, so they never see one."""
    import signal

    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submitted(pool: ProcessPoolExecutor, ranges: list[tuple[int, int]]) -> list[Future[int]]:
    try:
        return [pool.submit(_work, start, stop) for start, stop in ranges]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"run: the model or the data cannot be sent to other processes: {error}. Give them as "
            "files, names or module-level classes, or use --workers 0."
        ) from error
