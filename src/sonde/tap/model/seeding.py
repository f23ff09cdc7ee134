"""Random numbers of a model's own devices: on others they stay as the user left them."""

from itertools import chain

import torch
from torch import nn

from sonde.tap.model.placement import placement


def gpus_of(module: nn.Module) -> list[int]:
    """Return the number of each GPU on which a part of a module lies or runs."""
    return sorted({place.index or 0 for place in _places(module) if place.type == "cuda"})


def seed_devices(module: nn.Module, seed: int) -> None:
    """Seed the generators of the CPU and of a module's devices; ``torch.manual_seed`` seeds all.

    Call it inside ``torch.random.fork_rng(devices=gpus_of(module))``.
    """
    torch.default_generator.manual_seed(seed)
    for gpu in gpus_of(module):
        torch.cuda.default_generators[gpu].manual_seed(seed)
    for kind in {place.type for place in _places(module)} - {"cpu", "cuda", "meta"}:
        torch.get_device_module(kind).manual_seed(seed)


def _places(module: nn.Module) -> set[torch.device]:
    """Return where weights lie, and where inputs go: weights that wait elsewhere run there."""
    held = chain(module.parameters(), module.buffers())
    return {placement(module)[0], *(tensor.device for tensor in held)}
