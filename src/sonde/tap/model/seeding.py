"""Random states of a model's own devices; other devices keep theirs."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from sonde.core.repacking import in_own_form
from sonde.tap.model.placement import placement


def gpus_of(module: nn.Module) -> list[int]:
    """Return the index of each GPU where a part of a module lies or runs."""
    return _gpus_among(_places(module))


def seed_devices(module: nn.Module, seed: int) -> None:
    """Seed the generators of the CPU and of a module's devices; ``torch.manual_seed`` seeds all.

    Call it inside ``torch.random.fork_rng(devices=gpus_of(module))``.
    """
    torch.default_generator.manual_seed(seed)
    places = _places(module)
    for gpu in _gpus_among(places):
        torch.cuda.default_generators[gpu].manual_seed(seed)
    for kind in {place.type for place in places} - {"cpu", "cuda", "meta"}:
        torch.get_device_module(kind).manual_seed(seed)


def seed_everything(module: nn.Module, seed: int) -> None:
    """Seed every generator that a model may use; call it inside ``untouched``."""
    seed_devices(module, seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what a model may draw from
    random.seed(seed)


@contextmanager
def untouched(module: nn.Module) -> Iterator[list[str]]:
    """Restore random states and buffers after a block; yields the names of changed buffers."""
    in_own_form(module)
    before = {n: b.detach().clone() for n, b in module.named_buffers() if not b.is_meta}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    changed: list[str] = []
    try:
        with torch.random.fork_rng(devices=gpus_of(module)):
            yield changed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        in_own_form(module)
        for name, buffer in module.named_buffers():
            old = before.get(name)
            if old is not None and not torch.equal(old, buffer) and not _both_nan(old, buffer):
                changed.append(name)
                with torch.no_grad():
                    buffer.copy_(old)


@contextmanager
def buffers_kept(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Restore some buffers after a block."""
    before = {name: module.get_buffer(name).detach().clone() for name in names}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, old in before.items():
                module.get_buffer(name).copy_(old)


def _both_nan(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())


def _gpus_among(places: set[torch.device]) -> list[int]:
    return sorted({place.index or 0 for place in places if place.type == "cuda"})


def _places(module: nn.Module) -> set[torch.device]:
    """Return the devices of weights and inputs; offloaded weights run on the latter."""
    held = chain(module.parameters(), module.buffers())
    return {placement(module)[0], *(tensor.device for tensor in held)}
