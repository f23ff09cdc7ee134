"""Flow matching on digits by attention over patches, coarser in the middle, beside a teacher.

The teacher is a small transformer that learned to name the digits. Every arm has the same weights
to begin with, batches and noise.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core import Constant, Schedule, StopAt
from sonde.train import Align
from sonde_studies._flow_matching import FIT, losses_beside
from sonde_studies._recipe_data import learned
from sonde_studies.worlds.learning import drawn

BATCH, WIDTH, HEADS, STOP = 32, 32, 4, 2
GRIDS = ((2, 2), (4, 4))
SHARE, OF_ANGLES = 0.5, 0.3
"""Weights of the teacher's terms, and of angles in them; at 3, as published, angles harm more."""

Arm = Literal["plain", "states", "maps", "middle", "angles"]
ARMS: tuple[Arm, ...] = ("plain", "states", "maps", "middle", "angles")


def patches(x: Float[Tensor, "row 64"]) -> Float[Tensor, "row 16 4"]:
    """Return the two-by-two patches of digits, by rows."""
    return x.unflatten(1, (4, 2, 4, 2)).transpose(2, 3).flatten(3).flatten(1, 2)


def _block() -> nn.Module:
    made = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, batch_first=True)
    made.norm_first = True
    return made


class Classifier(nn.Module):
    """Two transformer blocks over the patches, and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.Sequential(_block(), _block())
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Float[Tensor, "row 64"]) -> Float[Tensor, "row 10"]:
        """Return the logits of the digits."""
        return self.head(self.blocks(self.enter(patches(x)) + self.places).mean(1))


class TokenDenoiser(nn.Module):
    """A block at 16 places, a block at 4, and a block at 16 that is given the first one too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.first, self.middle, self.last = _block(), _block(), _block()
        self.leave = nn.Linear(WIDTH, 4)

    def forward(self, mixed: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """Return the velocities at mixtures; the clean image is for a teacher alone."""
        of_time = t[:, None].expand(-1, 16, 1)
        first = self.first(self.enter(torch.cat([patches(mixed), of_time], 2)) + self.places)
        coarse = first.unflatten(1, (2, 2, 2, 2)).mean((2, 4))
        middle = self.middle(coarse.flatten(1, 2)).unflatten(1, (2, 1, 2, 1))
        fine = middle.expand(-1, 2, 2, 2, 2, -1).flatten(3, 4).flatten(1, 3)
        found = self.leave(self.last(first + fine))
        return found.unflatten(1, (4, 4)).unflatten(3, (2, 2)).transpose(2, 3).flatten(1)


def taught(x: Float[Tensor, "row 64"], label: Tensor, seed: int, steps: int) -> nn.Module:
    """Return a classifier of the first 1,000 digits."""
    return learned(drawn(Classifier, seed), x[:FIT], label[:FIT], seed, steps).module


def losses(
    teacher: nn.Module, x: Float[Tensor, "row 64"], arm: Arm, seed: int, steps: int
) -> tuple[float, float]:
    """Return the held-out loss of an arm after a third of the steps and at the end.

    Parameters
    ----------
    teacher : Classifier
    x : Float[Tensor, "row 64"]
        Digits with pixels in [0, 1]; the first 1,000 are for training.
    arm : {"plain", "states", "maps", "middle", "angles"}
        No teacher; states of the first block, until half of the steps; maps of attention as well;
        states of the coarse block, brought to the teacher's places; angles between rows as well.
    seed : int
    steps : int
    """
    return losses_beside(
        teacher,
        drawn(TokenDenoiser, seed),
        _terms(arm, seed),
        _weights(arm, steps),
        x,
        (10_000 + seed, seed),
        steps,
        BATCH,
        "tokens",
    )


def _of_states(coarse: bool) -> Align:
    """Return a loss with an initialised projector."""
    made = Align("cosine", "mlp", width=WIDTH, hidden=WIDTH, grids=GRIDS if coarse else None)
    made(torch.zeros(4 if coarse else 16, WIDTH), torch.zeros(16, WIDTH))
    return made


def _terms(arm: Arm, seed: int) -> dict[tuple[str, str], list[Align]]:
    """Return the losses of an arm by their sites."""
    coarse = arm in ("middle", "angles")
    site = ("middle" if coarse else "first", "teacher:net.blocks.1")
    found: dict[tuple[str, str], list[Align]] = {site: [drawn(lambda: _of_states(coarse), seed)]}
    if arm == "angles":
        found[site].append(Align("relational", grids=GRIDS))
    if arm == "maps":
        found["first:probs", "teacher:net.blocks.1:probs"] = [Align("cross_entropy")]
    return found


def _weights(arm: Arm, steps: int) -> dict[tuple[str, str], list[Schedule]]:
    """Return a weight for each loss: 0 without a teacher, and until half of the steps for two."""
    stops = arm in ("states", "maps")
    share = Constant(0.0) if arm == "plain" else Constant(SHARE)
    first: Schedule = StopAt(SHARE, steps // STOP) if stops else share
    of_angles = Constant(SHARE * OF_ANGLES)
    return {site: [first, of_angles][: len(one)] for site, one in _terms(arm, 0).items()}
