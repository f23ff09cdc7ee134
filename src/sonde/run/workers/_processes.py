"""Processes on this machine that work through the ranges of a plan."""

import math
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, MachineError
from sonde.core.wording import gib
from sonde.run.workers._actors import Failed
from sonde.run.workers.crew import Crew
from sonde.run.workers.job import Job, Span

_JOB: list[Job] = []
SHARED_MEMORY = Path("/dev/shm")


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
    _check_shared_memory(job)
    _allow_open_files()
    before, mine = multiprocessing.active_children(), []
    try:
        with _sigint_held():
            futures = _submitted(pool, spans)
        mine = [p for p in multiprocessing.active_children() if p not in before]
        for future in as_completed(futures):
            yield futures[future], pickle.loads(future.result())
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


def _check_shared_memory(job: Job) -> None:
    """Refuse what workers cannot share: writing to shared memory that is full kills the process.

    Raises
    ------
    MachineError
        With what it takes, what there is, and how to get more.
    """
    here = [t.untyped_storage() for t in job.tensors() if t.device.type == "cpu"]
    alone = {part.data_ptr(): part.nbytes() for part in here if not part.is_shared()}
    needed = sum(alone.values())
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else math.inf
    if needed > free:
        raise MachineError(
            f"run: workers share the model, or the rows, in {SHARED_MEMORY}: {gib(needed)}, of "
            f"which {gib(int(free))} are free. Make it larger (docker run --shm-size), or use "
            "--workers 0."
        )


def _allow_open_files() -> None:
    """Allow as many open files as the system lets us, from now on.

    Each tensor of a job, as of a model, is shared with workers as a file that stays open.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    job.begin(readable=False)
    _JOB[:] = [job]


def _end_with_the_driver() -> None:
    """End this process when the one that started it is gone: a killed driver ends no worker."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _work(start: int, stop: int) -> bytes:
    """Return the answer as bytes: a pool would send each tensor as an open file."""
    try:
        return pickle.dumps(_JOB[0].work(start, stop))
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
    except (OSError, RuntimeError) as error:
        if "open files" not in str(error):
            raise
        raise MachineError(
            "run: workers share each tensor of a model as an open file, and the system allows no "
            "more of them. Raise the limit (ulimit -Hn), or use --workers 0."
        ) from error
