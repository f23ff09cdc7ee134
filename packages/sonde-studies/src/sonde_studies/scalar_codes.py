"""Test whether quantised scalar latents keep factors apart in an autoencoder.

Four factors of a few values behind a random curved map, with as many latents and two more.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.layers import VectorQuantizer
from sonde.measure import info_mec
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

SIZES, DIM, LATENTS, VALUES, ROWS, HELD = (3, 4, 5, 6), 24, 6, 8, 2_000, 1_000
STEPS, TINY, DECAY, BATCH = 1_200, 5, 0.1, 128
NAMES = ("modular", "compact", "explicit")
RESCALED = torch.diag(torch.tensor([0.1, 1.0, 3.0, 10.0]))[[2, 0, 3, 1]]
ARMS = {
    "scalar": ("scalar", DECAY),
    "plain": ("none", DECAY),
    "no decay": ("scalar", 0.0),
}


@final
class ScalarCodesStudy(Study):
    """Autoencoders with and without eight values per latent, and without weight decay."""

    name = "scalar-codes"
    title = "do latents of a few values each keep factors apart?"
    paper = "hsu2023qlae"
    fidelity = "the paper's grid, straight-through gradient and decay of 0.1; perceptrons"
    data = "simulated: four factors of three to six values through a drawn net of 24 outputs"
    claims = (
        Claim("modular", "Latents of a few values are more modular than plain ones.",
              "InfoM, scalar codes less plain latents, both with weight decay",
              arms=("scalar", "plain")),
        Claim("compact", "They are more compact.", "InfoC, scalar codes less plain latents",
              arms=("scalar", "plain")),
        Claim("explicit", "They are no less explicit, to a tenth.",
              "InfoE, scalar codes less plain latents, and 0.1",
              arms=("scalar", "plain")),
        Claim("decay", "Without weight decay they are less modular.",
              "InfoM of scalar codes, with less without decay",
              arms=("scalar", "no decay")),
    )  # fmt: skip
    null = Claim("factors", "Factors that are rescaled and in another order are as modular.",
                 "InfoM of the factors, less rescaled and in another order")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Generate data, train each autoencoder, and measure its latents."""
        draw = torch.Generator().manual_seed(seed)
        factors = torch.stack(
            [torch.randint(n, (ROWS + HELD,), generator=draw) for n in SIZES], 1
        ).float()
        codes = factors / (torch.tensor(SIZES) - 1) - 0.5
        maps = [torch.randn(n, DIM, generator=draw) / n**0.5 for n in (len(SIZES), DIM)]
        x = torch.tanh(3 * codes @ maps[0]) @ maps[1]
        found: dict[str, float] = {}
        for arm, (kind, decay) in ARMS.items():
            tick(arm)
            net = drawn(lambda kind=kind: _Net(kind), seed)
            _learn(net, x[:ROWS], decay, seed, TINY if tiny else STEPS)
            with torch.no_grad():
                latents, made, _ = net.eval()(x[ROWS:])
            value = torch.as_tensor(info_mec(latents, factors[ROWS:]).value).tolist()
            found |= {f"{n} | {arm}": v for n, v in zip(NAMES, value, strict=True)}
            left = (made - x[ROWS:]).square().sum() / (x[ROWS:] - x[ROWS:].mean(0)).square().sum()
            found[f"unexplained | {arm}"] = float(left)
        tick("factors")
        gain = {n: found[f"{n} | scalar"] - found[f"{n} | plain"] for n in NAMES}
        return {
            **gain,
            "explicit": gain["explicit"] + 0.1,
            "decay": found["modular | scalar"] - found["modular | no decay"],
            "factors": lost_modularity(factors[ROWS:], RESCALED),
            **found,
        }


def lost_modularity(factors: Tensor, maps: Tensor) -> float:
    """Return the InfoM of factors as latents, less that of a linear map of them."""
    own, mapped = (info_mec(latents, factors).value for latents in (factors, factors @ maps))
    return float(torch.as_tensor(own)[0] - torch.as_tensor(mapped)[0])


class _Net(nn.Module):
    """An encoder to six latents, their quantised values, and a decoder."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, LATENTS))
        self.values = VectorQuantizer(LATENTS, VALUES, "scalar") if kind == "scalar" else None
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 64), nn.GELU(), nn.Linear(64, DIM))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, reconstructed rows, and the loss of the code values."""
        z = self.encoder(x)
        if self.values is None:
            return z, self.decoder(z), z.new_zeros(())
        q = self.values(z)
        return q, self.decoder(q), self.values.loss(z)


def _learn(net: _Net, x: Tensor, decay: float, seed: int, steps: int) -> None:
    """Train by AdamW, without weight decay on code values."""
    held = [] if net.values is None else list(net.values.parameters())
    maps = [*net.encoder.parameters(), *net.decoder.parameters()]
    groups = [{"params": maps, "weight_decay": decay}, {"params": held, "weight_decay": 0.0}]
    note(rows=len(x))
    optimiser = torch.optim.AdamW(groups, 3e-3)
    draw = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(steps):
            rows = x[torch.randint(len(x), (BATCH,), generator=draw)]
            optimiser.zero_grad()
            _, made, loss = net(rows)
            ((made - rows).square().mean() + loss).backward()
            optimiser.step()
