"""A gradient of unequal entries, and the mean of many decoded streams."""

from dataclasses import replace

import torch


def gradient(*shape, seed=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.rand(shape, generator=generator) ** 3 - 0.02


def draws(codec, x, n):
    """Return what codecs of n seeds decode."""
    made = [replace(codec, seed=seed) for seed in range(n)]
    return torch.stack([c.decode(c.encode(x)) for c in made]).double()


def assert_unbiased(found, x):
    """The mean lies within 4.5 standard errors of the truth in every entry."""
    mean, se = found.mean(0), found.std(0) / len(found) ** 0.5
    assert bool(((mean - x.double()).abs() <= 4.5 * se + 1e-9).all()), (mean - x) / se
