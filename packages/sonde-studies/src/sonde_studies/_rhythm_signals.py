"""Signals of eight channels that mix three sources, in patches of four samples.

Each source has a rhythm of its own. Which of them is strong changes every four patches, and the
order of strong sources is the class of the signal.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHANNELS, SOURCES, PATCHES, SAMPLES, KINDS = 8, 3, 16, 4, 4
NOISE, WEAK = 0.8, 0.3
RHYTHMS = (0.35, 0.8, 1.6)
"""Of the sources, radians per sample."""


def rhythm_signals(
    n: int, seed: int
) -> tuple[Float[Tensor, "row patch number"], Int[Tensor, "row"]]:
    """Return signals, channels by samples in each patch, and the class of each.

    Mixture and classes are the same for all seeds. Sources of a signal have random phases and start
    at a random time; channels have noise.
    """
    fixed = torch.Generator().manual_seed(0)
    mixture = torch.randn(SOURCES, CHANNELS, generator=fixed)
    rhythm = torch.tensor(RHYTHMS)
    orders = torch.stack([torch.randint(SOURCES, (PATCHES // 4,), generator=fixed)
                          for _ in range(KINDS)])  # fmt: skip
    draw = torch.Generator().manual_seed(seed + 1)
    kind = torch.randint(KINDS, (n,), generator=draw)
    strong = orders[kind].repeat_interleave(4, 1).repeat_interleave(SAMPLES, 1)
    time = torch.arange(PATCHES * SAMPLES) + 20.0 * torch.rand(n, 1, generator=draw)
    phase = 6.3 * torch.rand(n, SOURCES, 1, generator=draw)
    waves = torch.sin(rhythm[:, None] * time[:, None] + phase)
    amplitude = WEAK + (strong[:, None] == torch.arange(SOURCES)[:, None]).float()
    heard = torch.einsum("nst,sc->nct", waves * amplitude, mixture)
    heard = heard + NOISE * torch.randn(heard.shape, generator=draw)
    patches = heard.reshape(n, CHANNELS, PATCHES, SAMPLES).transpose(1, 2)
    return patches.reshape(n, PATCHES, CHANNELS * SAMPLES), kind
