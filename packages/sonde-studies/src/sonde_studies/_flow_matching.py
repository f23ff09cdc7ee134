"""Flow matching on digits: mixtures of images and noise, and a net that tells their velocity."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde import training
from sonde.core import Schedule
from sonde_studies.arms import note

WIDTH, BLOCKS, PIXELS = 96, 6, 64
FIT, RATE, EARLY = 1_000, 2e-3, 3
"""Images to train on, the training rate, and the share of the steps before the early loss."""
Rows = Float[Tensor, "row pixel"]
Times = Float[Tensor, "row 1"]


def mixtures(x: Rows, draw: torch.Generator) -> tuple[Rows, Times, Rows]:
    """Return mixtures of images and noise, the share of noise (the time), and the noise.

    Pixels in [0, 1] are scaled to [-1, 1] first.
    """
    t, noise = torch.rand(len(x), 1, generator=draw), torch.randn(x.shape, generator=draw)
    return (1 - t) * (2 * x - 1) + t * noise, t, noise


def flow(x: Rows, draw: torch.Generator) -> tuple[Rows, Times, Rows]:
    """Return mixtures and times as ``mixtures`` does, and the velocities from image to noise."""
    mixed, t, noise = mixtures(x, draw)
    return mixed, t, noise - (2 * x - 1)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


class Denoiser(nn.Module):
    """Six residual blocks; the clean image is passed along for a teacher only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS + 1, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, PIXELS)

    def states(self, mixed: Rows, t: Times) -> list[Float[Tensor, "row dim"]]:
        """Return the states before the first block and after each block."""
        found = [self.first(torch.cat([mixed, t], 1))]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found

    def forward(self, mixed: Rows, t: Times, clean: Rows) -> Rows:
        """Return the velocities at mixtures."""
        return self.last(self.states(mixed, t)[-1])


class OfClean(nn.Module):
    """A teacher that reads the clean image from the denoiser's input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, mixed: Rows, t: Times, clean: Rows) -> Tensor:
        """Return the teacher's answers."""
        return self.net(clean)


@torch.no_grad()
def held_loss(model: nn.Module, x: Rows, seed: int) -> float:
    """Return the mean squared error of the velocities, each image at eight times."""
    held = x.repeat(8, 1)
    mixed, t, wanted = flow(held, torch.Generator().manual_seed(seed + 1))
    return float((model(mixed, t, held) - wanted).square().mean())


def losses_beside(
    teacher: nn.Module,
    model: nn.Module,
    terms: Mapping[tuple[str, str], Sequence[nn.Module]],
    weight: Mapping[tuple[str, str], Sequence[Schedule]],
    x: Rows,
    seeds: tuple[int, int],
    steps: int,
    batch: int,
    reducer: Literal["auto", "tokens"] = "auto",
) -> tuple[float, float]:
    """Train a denoiser beside a teacher; return its held-out loss early and at the end.

    The early loss is taken after a third of the steps.

    Parameters
    ----------
    teacher : nn.Module
        Reads clean images.
    model : nn.Module
    terms, weight : mapping of sites to losses, and to a weight of each
    x : Float[Tensor, "row pixel"]
        Images with pixels in [0, 1]; the first 1,000 are for training.
    seeds : (int, int)
        Of batches and noise, and of the held-out noise.
    steps, batch : int
    reducer : {"auto", "tokens"}, default="auto"
        How states of several tokens become rows.
    """
    order, held = seeds
    draw, early = torch.Generator().manual_seed(order), 0.0
    beside = OfClean(teacher)
    with training(model, terms, weight=weight, teacher=beside, reducer=reducer) as losses:
        note(rows=FIT)
        adam = torch.optim.Adam([*model.parameters(), *losses.parameters()], lr=RATE)
        for step in range(steps):
            rows = x[torch.randint(FIT, (batch,), generator=draw)]
            mixed, t, wanted = flow(rows, draw)
            loss = (model(mixed, t, rows) - wanted).square().mean() + losses.loss()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.step()
            early = held_loss(model, x[FIT:], held) if step == steps // EARLY else early
    return early, held_loss(model, x[FIT:], held)
