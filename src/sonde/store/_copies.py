"""Copies of rows from a GPU to pinned memory, made while the forward goes on.

The thread that writes the rows waits for the copies. Rows that are on the host already are left as
they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sonde.core.batch import Batch


@dataclass(frozen=True)
class Coming:
    """A batch whose rows are on the host, or will be once every event has happened."""

    batch: Batch
    copied: tuple[torch.cuda.Event, ...] = ()

    def arrived(self) -> Batch:
        """Wait for the copies and return the batch."""
        for event in self.copied:
            event.synchronize()
        return self.batch


def to_host(batch: Batch) -> Coming:
    """Begin to copy the tensors on GPUs; kernels that are queued later do not disturb the copy.

    A copy is queued behind the kernels that made its source, on the stream that is current there,
    so memory that is freed meanwhile is not written again before the copy is done.
    """
    optional = () if batch.logits is None else (batch.logits,)
    devices = _cuda([*batch.rows.values(), *batch.grad.values(), *optional])
    if not devices:
        return Coming(batch)
    there = replace(
        batch,
        rows={key: _copied(x) for key, x in batch.rows.items()},
        grad={key: _copied(x) for key, x in batch.grad.items()},
        logits=None if batch.logits is None else _copied(batch.logits),
    )
    events = []
    for device in devices:
        with torch.cuda.device(device):
            events.append(torch.cuda.Event())
            events[-1].record()
    return Coming(there, tuple(events))


def _cuda(tensors: Iterable[Tensor]) -> list[torch.device]:
    return list(dict.fromkeys(x.device for x in tensors if x.is_cuda))


def _copied(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    with torch.cuda.device(x.device):
        return host.copy_(x.detach(), non_blocking=True)
