"""Capacity and retrieval accuracy of associative memories.

Random patterns of signs, each asked for by a damaged copy.
"""

from typing import final

import torch
from torch import Tensor

from sonde.layers import Hopfield, hebbian_couplings, hebbian_recall
from sonde_studies._noisy_patterns import taught_and_untaught
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

DIM, FLIPPED, ASKED = 64, 0.2, 200
COUNTS, BETAS = (4, 8, 16, 64, 256), (0.05, 0.25, 1.0)
UNITS, PATTERNS, BLANKS, REPEATS = 1_000, 3, (0.0, 0.3, 0.7), 3


@final
class MemoriesStudy(Study):
    """Dense retrieval at three inverse temperatures, against Hebbian couplings."""

    name = "memories"
    title = "how many patterns do dense and Hebbian memories give back?"
    paper = "ramsauer2021hopfield"
    fidelity = "one update of the dense memory, as attention makes; twenty of the Hebbian one"
    data = "simulated: patterns of 64 signs, a fifth flipped; of 1,000 or 500 signs with blanks"
    claims = (
        Claim("dense", "A sharp dense memory holds 256 patterns, four for each unit.",
              "share of signs that are right at 256 patterns, less 0.95"),
        Claim("hebbian", "Hebbian couplings hold 4 patterns better than 64.",
              "share of right signs at 4 patterns less that at 64",
              arms=("Hebbian, 4 patterns", "Hebbian, 64 patterns")),
        Claim("sharp", "A dense memory that is not sharp mixes its patterns.",
              "share of right signs at 256 patterns, sharp less blunt",
              arms=("dense, beta 1", "dense, beta 0.05")),
        Claim("parallel", "With three tenths of blanks one state holds the second pattern as well.",
              "overlap with the second pattern, less 0.1"),
        Claim("hierarchy", "Three overlaps are (1 - d) d^k, to 0.04.",
              "0.04 less the largest distance from theory at d = 0.3"),
        Claim("regimes", "Beyond 1 - 2 d + d^3 = 0 (d = 0.62) no pattern gets all of its units.",
              "share that the first overlap lacks of 1 - d, d = 0.7 less d = 0.3",
              arms=("blanks 0.7", "blanks 0.3")),
        Claim("learned", "Patterns are learned from 256 noisy examples without a teacher.",
              "first overlap over 1 - d, from 256 examples of a pattern less from one",
              above=0.5,
              arms=("not told, 256 examples", "not told, 1 example")),
        Claim("threshold", "A teacher, who tells which pattern an example is of, saves no more "
              "than a quarter of a doubling of examples.",
              "0.25 less the doublings of examples up to a first overlap of 0.9 (1 - d), not told "
              "less told",
              arms=("told", "not told")),
        Claim("tasks", "Nor does a teacher change the overlap with the second pattern, to 0.02.",
              "0.02 less the absolute difference of second overlaps after 256 examples",
              arms=("told", "not told")),
    )  # fmt: skip
    null = Claim("nothing asked", "Asked for by a state with half of its signs flipped, which says "
                 "nothing of it, no pattern is given back.",
                 "share of right signs less a half, mean of 256 in the sharp dense memory and 64 "
                 "in Hebbian couplings")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Store, corrupt and retrieve patterns."""
        tick("retrieve")
        draw = torch.Generator().manual_seed(seed)
        every = 2.0 * torch.randint(2, (max(COUNTS), DIM), generator=draw) - 1
        dense = {b: {n: _dense(every[:n], b, draw) for n in COUNTS} for b in BETAS}
        hebbian = {n: _hebbian(every[:n], draw) for n in COUNTS}
        most, sharp = max(COUNTS), BETAS[-1]
        for n in COUNTS:
            note_for(f"Hebbian, {n} patterns", bytes=4 * DIM**2)
        for b in BETAS:
            note_for(f"dense, beta {b:g}", bytes=4 * most * DIM)
        for d in BLANKS:
            note_for(f"blanks {d:g}", bytes=4 * UNITS**2)
        unasked = unasked_for(every, sharp, draw)
        tick("blanks")
        overlaps = {d: _overlaps(d, draw) for d in BLANKS}
        lacks = {d: 1 - float(overlaps[d][0]) / (1 - d) for d in BLANKS}
        tick("noisy examples")
        taught = taught_and_untaught(seed, tiny)
        theory = torch.tensor([0.7 * 0.3**k for k in range(PATTERNS)])
        return {
            "dense": dense[sharp][most] - 0.95,
            "hebbian": hebbian[4] - hebbian[64],
            "sharp": dense[sharp][most] - dense[BETAS[0]][most],
            "parallel": float(overlaps[0.3][1]) - 0.1,
            "hierarchy": 0.04 - float((overlaps[0.3] - theory).abs().max()),
            "regimes": lacks[0.7] - lacks[0.3],
            "nothing asked": unasked - 0.5,
            **taught,
            **{f"dense, beta {b:g} | {n}": v for b, row in dense.items() for n, v in row.items()},
            **{f"Hebbian | {n}": v for n, v in hebbian.items()},
            **{
                f"overlap {k + 1} | blanks {d:g}": float(o[k])
                for d, o in overlaps.items()
                for k in range(PATTERNS)
            },
        }


def unasked_for(stored: Tensor, beta: float, draw: torch.Generator, flipped: float = 0.5) -> float:
    """Return the share of right signs where a state says nothing of the pattern.

    Parameters
    ----------
    stored : Float[Tensor, "pattern dim"]
    beta : float
        Of the dense memory.
    draw : torch.Generator
    flipped : float, default=0.5
        Share of the signs that are flipped; less than a half leaks the pattern.
    """
    return (_dense(stored, beta, draw, flipped) + _hebbian(stored[:64], draw, flipped)) / 2


def _damaged(x: Tensor, draw: torch.Generator, flipped: float) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=draw) < flipped, -x, x)


def _dense(stored: Tensor, beta: float, draw: torch.Generator, flipped: float = FLIPPED) -> float:
    some = stored[torch.randint(len(stored), (ASKED,), generator=draw)]
    memory = Hopfield(DIM, "retrieve", beta=beta)
    found = memory(_damaged(some, draw, flipped).unsqueeze(0), stored)[0]
    return float((found.sign() == some).double().mean())


def _hebbian(stored: Tensor, draw: torch.Generator, flipped: float = FLIPPED) -> float:
    some = stored[torch.randint(len(stored), (ASKED,), generator=draw)]
    couplings, asked = hebbian_couplings(stored), _damaged(some, draw, flipped)
    found = torch.stack([hebbian_recall(couplings, one, 20) for one in asked])
    return float((found.sign() == some).double().mean())


def _overlaps(blanks: float, draw: torch.Generator) -> Tensor:
    """Return the overlaps of states that started near the first of three diluted patterns."""
    found = torch.zeros(PATTERNS)
    for _ in range(REPEATS):
        signs = 2.0 * torch.randint(2, (PATTERNS, UNITS), generator=draw) - 1
        stored = signs * (torch.rand(signs.shape, generator=draw) >= blanks)
        blank = 2.0 * torch.randint(2, (UNITS,), generator=draw) - 1
        start = torch.where(stored[0] == 0, blank, stored[0])
        held = hebbian_recall(hebbian_couplings(stored), start, 20)
        found += (stored @ held / UNITS).abs().sort(descending=True).values / REPEATS
    return found
