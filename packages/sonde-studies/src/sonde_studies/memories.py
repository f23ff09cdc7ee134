"""How many patterns associative memories hold, and how well they retrieve them.

Random patterns of signs, each asked for by a damaged copy.
"""

from typing import final

import torch
from torch import Tensor

from sonde.layers import Hopfield, hebbian_couplings, hebbian_recall
from sonde_studies.study import Claim, Figures, Study, Tick

DIM, FLIPPED, ASKED = 64, 0.2, 200
COUNTS, BETAS = (4, 8, 16, 64, 256), (0.05, 0.25, 1.0)


@final
class MemoriesStudy(Study):
    """Dense retrieval at three sharpnesses beside Hebbian couplings."""

    name = "memories"
    title = "how many patterns do dense and Hebbian memories give back?"
    paper = "ramsauer2021hopfield"
    fidelity = "one update of the dense memory, as attention makes; twenty of the Hebbian one"
    data = "simulated: random patterns of 64 signs, a fifth of the signs flipped"
    claims = (
        Claim("dense", "A sharp dense memory holds 256 patterns, four for each unit.",
              "share of signs that are right at 256 patterns, less 0.95"),
        Claim("hebbian", "Hebbian couplings hold 4 and lose 64.",
              "share of right signs at 4 patterns less that at 64"),
        Claim("sharp", "A dense memory that is not sharp mixes its patterns.",
              "share of right signs at 256 patterns, sharp less blunt"),
    )  # fmt: skip
    null = Claim("stranger", "Asked for a pattern that was not stored it says nothing of it.",
                 "share of right signs", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Store, damage and retrieve."""
        tick("retrieve")
        draw = torch.Generator().manual_seed(seed)
        every = 2.0 * torch.randint(2, (max(COUNTS) + ASKED, DIM), generator=draw) - 1
        dense = {b: {n: _dense(every[:n], every[:n], b, draw) for n in COUNTS} for b in BETAS}
        hebbian = {n: _hebbian(every[:n], draw) for n in COUNTS}
        most, sharp = max(COUNTS), BETAS[-1]
        return {
            "dense": dense[sharp][most] - 0.95,
            "hebbian": hebbian[4] - hebbian[64],
            "sharp": dense[sharp][most] - dense[BETAS[0]][most],
            "stranger": _dense(every[:most], every[most:], sharp, draw, damaged=0.5),
            **{f"dense, beta {b:g} | {n}": v for b, row in dense.items() for n, v in row.items()},
            **{f"Hebbian | {n}": v for n, v in hebbian.items()},
        }


def _damaged(x: Tensor, draw: torch.Generator, share: float = FLIPPED) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=draw) < share, -x, x)


def _dense(
    stored: Tensor, asked: Tensor, beta: float, draw: torch.Generator, damaged: float = FLIPPED
) -> float:
    some = asked[torch.randint(len(asked), (ASKED,), generator=draw)]
    memory = Hopfield(DIM, "retrieve", beta=beta)
    found = memory(_damaged(some, draw, damaged).unsqueeze(0), stored)[0]
    return float((found.sign() == some).double().mean())


def _hebbian(stored: Tensor, draw: torch.Generator) -> float:
    some = stored[torch.randint(len(stored), (ASKED,), generator=draw)]
    couplings = hebbian_couplings(stored)
    found = torch.stack([hebbian_recall(couplings, one, 20) for one in _damaged(some, draw)])
    return float((found.sign() == some).double().mean())
