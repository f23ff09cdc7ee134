"""Processes on this machine that work through the ranges of a plan."""

import multiprocessing
import pickle
import signal
import socket
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from sonde.core.errors import InputError, MachineError
from sonde.run.workers._actors import Failed
from sonde.run.workers.crew import Crew
from sonde.run.workers.job import Job, Span

_JOB: list[Job] = []


def hand_out_to_processes(
    job: Job, spans: Sequence[Span], crew: Crew
) -> Generator[tuple[Span, Any]]:
    """Yield each range with its answer; see ``hand_out``."""
    pool = ProcessPoolExecutor(
        crew.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(job,),
    )
    before, mine = multiprocessing.active_children(), []
    try:
        with _sigint_held():
            futures = _submitted(pool, spans)
        mine = [p for p in multiprocessing.active_children() if p not in before]
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        pool.shutdown(wait=True)  # only then it is known how each ended
        raise MachineError(
            f"run: a worker process died before it could answer{_ends(mine)}. Its model or data "
            "may not be picklable or its memory ran out; committed units are kept. Run again, with "
            "a smaller --batch-size or fewer --workers, or use --workers 0."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ends(processes: Sequence[BaseProcess]) -> str:
    """Return which processes did not end as the pool ends them, and how."""
    usual = (None, 0, -signal.SIGTERM)
    found = [(p.pid, p.exitcode) for p in processes if p.exitcode not in usual]
    ends = [
        f"process {pid} on {socket.gethostname()}: "
        + (signal.Signals(-code).name if code and code < 0 else f"exit code {code}")
        for pid, code in found
    ]
    return f" ({', '.join(ends)})" if ends else ""


def _start(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job.begin(readable=False)
    _JOB[:] = [job]


def _work(start: int, stop: int) -> Any:
    try:
        return _JOB[0].work(start, stop)
    except Exception as error:
        raise Failed.of(error).error() from error


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, so they never see one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submitted(pool: ProcessPoolExecutor, spans: Sequence[Span]) -> dict[Future[Any], Span]:
    try:
        return {pool.submit(_work, *span): span for span in spans}
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"run: the model or the data cannot be sent to other processes: {error}. Give them as "
            "files, names or module-level classes, or use --workers 0."
        ) from error
