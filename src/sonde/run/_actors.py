"""What runs inside a Ray actor, and how what goes wrong there reaches the driver."""

import os
import pickle
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonde.core.errors import InputError, MachineError, SondeError, is_out_of_memory
from sonde.run.crew import Job


@dataclass(frozen=True)
class Failed:
    """An exception in a worker.

    Parameters
    ----------
    kind : str
        Name of its class.
    text : str
    where : str
        Machine and process.
    memory, files : bool
        Whether memory ran out, or a file or module is not there.
    pickled : bytes or None
        The exception, where it can be sent.
    """

    kind: str
    text: str
    where: str
    memory: bool
    files: bool
    pickled: bytes | None

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """Return what a worker tells of an exception."""
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:  # an exception of a user may do anything when it is copied
            pickled = None
        return cls(
            type(error).__name__,
            " ".join(str(error).split()),
            f"{socket.gethostname()} (process {os.getpid()})",
            is_out_of_memory(error) and not isinstance(error, SondeError),
            isinstance(error, ImportError | OSError) and not isinstance(error, SondeError),
            pickled,
        )

    def error(self) -> Exception:
        """Return the exception that the driver raises."""
        if self.memory:
            return MachineError(
                f"run: memory ran out in a worker on {self.where}: {self.text}. Take a smaller "
                "--batch-size, fewer --workers, or a larger machine; what is committed is kept."
            )
        if self.files:
            return MachineError(
                f"run: a worker on {self.where} lacks a file or module: {self.kind}: {self.text}. "
                "Put model, data and code where every machine finds them under the same path."
            )
        error = None if self.pickled is None else pickle.loads(self.pickled)
        if error is None:
            return InputError(f"run: a worker on {self.where} failed: {self.kind}: {self.text}.")
        error.add_note(f"in a worker on {self.where}")
        return error


class Worker:
    """Holds a job, with its model, in a Ray actor and works through the ranges it is given."""

    def __init__(self) -> None:
        self._job: Job | None = None

    def begin(self, payload: np.ndarray, readable: bool, places: Sequence[str]) -> Failed | int:
        """Unpack the job, with modules from where the driver has them; return this process's id."""
        sys.path += [p for p in places if p not in sys.path and Path(p).exists()]
        try:
            job: Job = pickle.loads(payload.data)
            job.begin(readable)
            self._job = job
        except Exception as error:  # told by the driver, which ends the run
            return Failed.of(error)
        return os.getpid()

    def work(self, start: int, stop: int) -> Any:
        """Do one range."""
        assert self._job is not None
        try:
            return self._job.work(start, stop)
        except Exception as error:  # told by the driver, which ends the run
            return Failed.of(error)
