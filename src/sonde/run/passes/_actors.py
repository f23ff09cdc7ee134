"""Code that runs inside a Ray actor, and how a worker's errors reach the driver."""

import io
import os
import pickle
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sonde.core.errors import InputError, MachineError, SondeError, is_out_of_memory
from sonde.run.passes.job import Job


@dataclass(frozen=True)
class WorkerFailure:
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
        The exception, or None if it cannot be sent.
    """

    kind: str
    text: str
    where: str
    memory: bool
    files: bool
    pickled: bytes | None

    @classmethod
    def of(cls, error: Exception) -> "WorkerFailure":
        """Return the report of an exception for the driver."""
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
                f"run: memory ran out in a worker on {self.where}: {self.text}. Take a "
                "smaller --batch-size, fewer --workers, or a larger machine. Committed units "
                "are kept."
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


def renumbered(devices: Sequence[torch.device]) -> dict[str, str]:
    """Return each driver device's name in the worker, which sees only its own devices.

    Examples
    --------
    >>> renumbered([torch.device("cuda:1"), torch.device("cuda:3")])
    {'cuda:1': 'cuda:0', 'cuda:3': 'cuda:1'}
    """
    return {str(device): f"{device.type}:{i}" for i, device in enumerate(devices)}


def unpacked(payload: memoryview, devices: Mapping[str, str]) -> Any:
    """Unpickle bytes from this run's driver; ``devices`` maps the devices of tensors.

    The bytes are trusted as the driver is: they come with the run, never from a file of a user.
    """
    return _Unpickler(io.BytesIO(payload), devices).load()


class _Unpickler(pickle.Unpickler):
    """Loads each tensor to the device that ``devices`` maps its device to."""

    def __init__(self, file: io.BytesIO, devices: Mapping[str, str]) -> None:
        super().__init__(file)
        self._devices = dict(devices)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._storage
        if (module, name) == ("torch", "device"):
            return self._device
        return super().find_class(module, name)

    def _storage(self, content: bytes) -> Any:
        where = self._devices
        return torch.load(io.BytesIO(content), map_location=where, weights_only=False)

    def _device(self, kind: str, index: int | None = None) -> torch.device:
        named = kind if index is None else f"{kind}:{index}"
        return torch.device(self._devices.get(named, named))


class Worker:
    """Holds a job, with its model, in a Ray actor and works through the ranges it is given."""

    def __init__(self) -> None:
        self._job: Job | None = None

    def begin(
        self,
        payload: np.ndarray,
        readable: bool,
        folders: Sequence[str],
        devices: Mapping[str, str],
    ) -> WorkerFailure | int:
        """Unpack the job, with the driver's module folders; return the process id, or a failure."""
        sys.path += [f for f in folders if f not in sys.path and Path(f).exists()]
        try:
            job: Job = unpacked(payload.data, devices)
            job.begin(readable)
            self._job = job
        except Exception as error:  # told by the driver, which ends the run
            return WorkerFailure.of(error)
        return os.getpid()

    def work(self, start: int, stop: int) -> Any:
        """Do one range."""
        assert self._job is not None
        try:
            return self._job.work(start, stop)
        except Exception as error:  # told by the driver, which ends the run
            return WorkerFailure.of(error)
