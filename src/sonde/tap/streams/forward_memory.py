"""Memory of one forward pass: the tensors that live at once, counted while a few rows run."""

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sonde.core.inputs import InputBatch, Inputs
from sonde.tap.generating.replay import ReplayInputs, StandIns
from sonde.tap.streams.live import LiveStream

SMALL_BYTES = 64 * 2**20
"""Batches below this bound are not run: the memory that every pass needs covers them."""
OUTPUTS_AT_ONCE = 16
"""Tensors of the size of the largest output that live at once, at most."""
MEASURED_ROWS = PROBED_ROWS = 2


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations create inside its block, and their peak.

    Memory that a kernel takes and frees within one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = self.peak_bytes = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in _tensors((args, kwargs))}
        for x in _tensors(output):
            storage = x.untyped_storage()
            is_new = id(storage) not in given and id(storage) not in self._counted
            if is_new and x.device.type != "meta":
                self._count(storage)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()
        self._counted.add(name)
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

        def freed() -> None:
            self._counted.discard(name)
            self.now_bytes -= size

        weakref.finalize(storage, freed)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.layout == torch.strided]


def forward_bytes(stream: LiveStream) -> int:
    """Return the peak bytes of tensors in one forward pass of a stream's largest batch.

    The two longest examples are run and counted, unless the batch is small whatever they are.
    Tensors on other devices than the CPU are not counted: they do not take this machine's memory.
    """
    device = next((p.device for p in stream.model.module.parameters()), torch.device("cpu"))
    n_batch = min(getattr(stream.inputs, "batch_size", 1), len(stream))
    if device.type != "cpu" or not n_batch:
        return 0
    batch = _longest(stream.inputs, min(MEASURED_ROWS, n_batch))
    if batch is None or _bound(stream, batch) * n_batch < SMALL_BYTES:
        return 0
    reader, counted = stream.reader(), LiveBytes()
    with counted:
        _ = stream.read_batch(reader, batch)
    return counted.peak_bytes * n_batch // len(batch)


def _longest(inputs: Inputs, n: int) -> InputBatch | None:
    """Return a batch of the examples with most tokens, or of the first if no length is known."""
    given: Any = StandIns(inputs) if isinstance(inputs, ReplayInputs) else inputs
    listing = getattr(given, "listing", None)
    if listing is None:
        return next(iter(given.batches(0, n)), None)
    longest = np.argsort(listing.length, kind="stable")[::-1][:n]
    return next(iter(given.at(np.sort(longest)).batches(0, n)), None)


def _bound(stream: LiveStream, batch: InputBatch) -> float:
    """Return a generous bound of one example's bytes, from the sizes in the probe forward."""
    calls = [call for calls in stream.probe.trace.values() for call in calls]
    sizes = (leaf for call in calls for leaf in call.outputs.values())
    largest = max((math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in sizes), default=0)
    probed = max((math.prod(c.input.shape) for c in calls[:1] if c.input is not None), default=1)
    given = max((x.numel() for x in _tensors((batch.args, batch.kwargs))), default=probed)
    times = given / len(batch) / (probed / PROBED_ROWS)
    return OUTPUTS_AT_ONCE * largest / PROBED_ROWS * times
