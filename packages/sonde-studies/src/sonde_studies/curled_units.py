"""Test whether codes of an autoencoder keep information that principal components lose.

Gaussian pairs of known information, whose rows lie on curled surfaces in 30 units.
"""

import math
from typing import Any, final

import torch
from torch import Tensor

from sonde.measure import mutual_information
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

NATS, LATENTS, UNITS, ROWS, K = 2.0, 2, 30, 1200, 4
CURL, NOISE = 0.6, 1e-3


@final
class CurledUnitsStudy(Study):
    """Neighbour estimates in two numbers of each site: codes of an autoencoder, or components.

    A unit is the sine of a random sum of two latents. How fast the sines turn was chosen on seeds
    100 and 101.
    """

    name = "curled-units"
    title = "does an autoencoder keep the information that principal components lose?"
    paper = "butakov2024compression"
    fidelity = "the estimator of Kraskov in place of the weighted one; dense autoencoders"
    data = "synthetic pairs of 2 nats in 30 curled units, 1,200 rows"
    claims = (
        Claim("all", "Of 2 nats in curled units, codes of an autoencoder and neighbours find all "
              "to 0.1.", "0.1 less the absolute error, nats"),
        Claim("codes", "They miss less than as many principal components, which take no steps of "
              "training and fewer weights.",
              "absolute error in nats, components less codes", arms=("codes", "components")),
        Claim("all units", "They miss less than neighbours in all units, without steps and "
              "weights.", "absolute error in nats, all units less codes",
              arms=("codes", "all units")),
    )  # fmt: skip
    null = Claim("unrelated", "Codes of unrelated latents have no information.", "nats")

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Estimate known information in each way, and that of unrelated latents."""
        n = 200 if tiny else ROWS
        x, y = curled_pair(NATS, n, seed)
        ways: dict[str, dict[str, Any]] = {
            "codes": {"components": LATENTS, "compressor": "autoencoder"},
            "components": {"components": LATENTS},
            "all units": {},
        }
        found = dict[str, float]()
        for name, how in ways.items():
            with part(name):
                tick(name)
                note(rows=n, **({} if name == "codes" else {"updates": 0, "parameters": 0}))
                found[name] = float(mutual_information(x, y, estimator="ksg", k=K, **how))
        tick("unrelated")
        x, y = curled_pair(0.0, n, seed)
        missed = {name: abs(v - NATS) for name, v in found.items()}
        return {
            "all": 0.1 - missed["codes"],
            "codes": missed["components"] - missed["codes"],
            "all units": missed["all units"] - missed["codes"],
            "unrelated": float(mutual_information(x, y, estimator="ksg", k=K, **ways["codes"])),
            **{f"nats | {name}": v for name, v in found.items()},
        }


def curled_pair(nats: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two sites of 30 curled units with a given mutual information.

    Parameters
    ----------
    nats : float
    n : int
        Rows.
    seed : int
    """
    draw = torch.Generator().manual_seed(1000 * seed + int(10 * nats))
    rho = math.sqrt(-math.expm1(-2.0 * nats / LATENTS))
    a, b = torch.randn(2, n, LATENTS, generator=draw, dtype=torch.float64)
    sites: list[Tensor] = []
    for z in (a, rho * a + math.sqrt(1.0 - rho**2) * b):
        turn = CURL * torch.randn(LATENTS, UNITS, generator=draw, dtype=torch.float64)
        phase = 2 * math.pi * torch.rand(UNITS, generator=draw, dtype=torch.float64)
        x = (z @ turn + phase).sin()
        sites.append(x + NOISE * torch.randn(x.shape, generator=draw, dtype=torch.float64))
    return sites[0], sites[1]
