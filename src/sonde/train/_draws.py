"""Random numbers of a loss: new at every call, and reproducible if training is resumed."""

import torch
from torch import Tensor, nn

from sonde.tap.hooks.latest import CopiedLock

SPREAD = 1_000_003


class Draws(nn.Module):
    """Generators numbered by call; the number of the next call is part of the state."""

    n: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))
        self._turn = CopiedLock()

    def next(self) -> torch.Generator:
        """Return the generator of the current call."""
        with self._turn:
            number = int(self.n)
            self.n += 1
        return torch.Generator().manual_seed(self.seed * SPREAD + number)
