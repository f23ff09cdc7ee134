"""A small language model that knows one rule."""

import functools

import torch

from models import gpt2
from sonde.core.inputs import Model


@functools.cache
def model() -> Model:
    """Return a model that was taught that token i is followed by i + 1."""
    module = gpt2()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(30):
        ids = torch.randint(3, 48, (16, 1)) + torch.arange(12)
        optimizer.zero_grad()
        module(ids, labels=ids).loss.backward()
        optimizer.step()
    return Model(module.eval(), config=module.config, task="causal")
