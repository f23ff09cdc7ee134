"""Simulated sequences whose targets depend on earlier steps: delayed signs, tones, paths."""

import torch
from jaxtyping import Float
from torch import Tensor

LENGTH, ROWS = 24, 512
Sequences = Float[Tensor, "row step dim"]


def noisy_signs(seed: int) -> tuple[Sequences, Float[Tensor, "row step"]]:
    """Return random signs with noise, and which are positive (1) or negative (0)."""
    draw = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (ROWS, LENGTH), generator=draw).float()
    noisy = 2 * sign - 1 + 0.3 * torch.randn(sign.shape, generator=draw)
    return noisy.unsqueeze(2), sign


def tones(seed: int) -> tuple[Sequences, Sequences]:
    """Return the sum of a fast and a slow tone, and the slow tone alone."""
    draw = torch.Generator().manual_seed(seed)
    rate = torch.tensor([2.1, 0.4]) * (0.9 + 0.2 * torch.rand(ROWS, 2, generator=draw))
    phase = 2 * torch.pi * torch.rand(ROWS, 2, generator=draw)
    both = torch.sin(torch.arange(LENGTH)[:, None] * rate[:, None] + phase[:, None])
    return both.sum(2, keepdim=True), both[..., 1:]


def paths(seed: int) -> tuple[Sequences, Sequences]:
    """Return two unlabelled points on a line, lower first, and their next moves."""
    draw = torch.Generator().manual_seed(seed)
    start, speed = torch.randn(2, ROWS, 1, 2, generator=draw)
    steps = torch.arange(LENGTH + 1)[None, :, None] / LENGTH
    ordered = (start + 2 * speed * steps).sort(2).values
    return ordered[:, :-1], LENGTH * ordered.diff(dim=1) / 2
