"""Processes on this machine that work through the ranges of a plan."""

import multiprocessing
import pickle
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
    try:
        with _sigint_held():
            futures = _submitted(pool, spans)
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise MachineError(
            "run: a worker process died before it could answer. Its model or data may not be "
            "picklable or its memory ran out; committed units are kept. Run again, or use "
            "--workers 0."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(job: Job) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job.begin(readable=False)
    _JOB[:] = [job]


def _work(start: int, stop: int) -> Any:
    try:
        return _JOB[0].work(start, stop)
    except Exception as error:
        failed = Failed.of(error)
        if failed.memory or failed.files:
            raise failed.error() from error
        raise


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


def _submitted(pool: ProcessPoolExecutor, spans: Sequence[Span]) -> dict[Future[Any], Span]:
    try:
        return {pool.submit(_work, *span): span for span in spans}
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"run: the model or the data cannot be sent to other processes: {error}. Give them as "
            "files, names or module-level classes, or use --workers 0."
        ) from error
