"""The work on one range of units, in any kind of worker."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.engine.array_stream import ArrayStream
from sonde.engine.derived import innermost
from sonde.tap import LiveStream

Span = tuple[int, int]


@dataclass(frozen=True)
class Job(ABC):
    """Work on a range of units. A job is sent to workers, so it must be picklable.

    Parameters
    ----------
    stream : Stream
    threads : int
        Threads of each worker.
    """

    stream: Stream
    threads: int

    @abstractmethod
    def work(self, start: int, stop: int) -> Any:
        """Process the units ``[start, stop)`` in a worker, and return the result for the driver."""

    def devices(self) -> list[torch.device]:
        """Return the accelerators that one worker needs, in ascending order."""
        live = innermost(self.stream)
        if not isinstance(live, LiveStream):
            return []
        all_devices = {p.device for p in live.model.module.parameters()}
        real = [device for device in all_devices if device.type not in ("cpu", "meta")]
        return sorted(real, key=lambda device: (device.type, device.index or 0))

    def tensors(self) -> list[torch.Tensor]:
        """Return a job's large tensors: the weights of a model, or the rows of plain arrays."""
        inner = innermost(self.stream)
        if isinstance(inner, LiveStream):
            module = inner.model.module
            return [*module.parameters(), *module.buffers()]
        return list(inner.rows.values()) if isinstance(inner, ArrayStream) else []

    def begin(self, readable: bool = True) -> None:
        """Prepare a worker, and check that it can read the data that the driver can read.

        Raises
        ------
        InputError
            If the first example that the driver can read is not here.
        """
        torch.set_num_threads(self.threads)
        if readable and not can_read(self.stream):
            raise InputError(
                "run: the first example cannot be read in a worker. Put the data where every "
                "machine finds them under the same path."
            )


def can_read(stream: Stream) -> bool:
    """Return whether the first example can be read, without running the model."""
    if isinstance(stream, ArrayStream) or not len(stream):
        return True
    live = innermost(stream)
    if isinstance(live, LiveStream):
        return next(iter(live.inputs.batches(0, 1)), None) is not None
    return next(iter(stream.batches(0, 1)), None) is not None
