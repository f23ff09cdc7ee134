"""What runs inside a worker process of this machine: it asks for a job, then answers each range."""

import os
import pickle
import signal
import threading
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from sonde.run.workers._actors import WorkerFailure
from sonde.run.workers.job import Job


class Parcel:
    """A job that is pickled while a process starts, and sent once the process asks for it.

    Only a process that is about to start inherits the files in which tensors are shared. But what
    is given to it at its start goes through a pipe that a killed process leaves full, and the
    driver would wait there for good. So it is given nothing but its line to the driver.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.content = b""

    def __reduce__(self) -> tuple[type[bytes], tuple[()]]:
        self.content = bytes(ForkingPickler.dumps(self._job))
        return bytes, ()


def serve(line: Connection, _parcel: bytes) -> None:
    """Ask for the job, then answer each range, until the driver closes the line.

    Answers use plain ``pickle``: the connection itself would send each tensor as an open file.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    if hasattr(os, "register_at_fork"):  # what a model or data set forks must not outlive the line
        os.register_at_fork(after_in_child=line.close)
    with suppress(EOFError, OSError):
        line.send_bytes(b"")
        job = _begun(line.recv_bytes())
        while True:
            start, stop = pickle.loads(line.recv_bytes())
            line.send_bytes(_answer(job, start, stop))


def _begun(content: bytes) -> Job | WorkerFailure:
    try:
        job: Job = pickle.loads(content)
        job.begin(readable=False)
    except Exception as error:  # told by the driver, which ends the run
        return WorkerFailure.of(error)
    return job


def _answer(job: Job | WorkerFailure, start: int, stop: int) -> bytes:
    if isinstance(job, WorkerFailure):
        return pickle.dumps(job)
    try:
        answer: Any = job.work(start, stop)
        return pickle.dumps(answer)
    except Exception as error:  # told by the driver, which ends the run
        return pickle.dumps(WorkerFailure.of(error))


def _end_with_the_driver() -> None:
    """End this process when the one that started it is gone: a killed driver ends no worker."""
    driver = parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)
