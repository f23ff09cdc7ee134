"""Test whether a sampler needs its encoder at every step, and how to choose the steps.

A small rectified flow of digits: an encoder reads the noisy image, a decoder moves it. Between the
chosen steps the decoder works with the encoder's last states.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import final

import torch
from torch import Tensor, nn

from sonde.compress import share_steps
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, minimise

STEPS, KEPT, DRAWS, IMAGES = 16, 4, 20, 256
LEARN, TINY, PIXELS, WIDTH = 2000, 5, 64, 128


@final
class StepSharingStudy(Study):
    """Schedules of four encoder runs out of sixteen, against all, from the same noise."""

    name = "step-sharing"
    title = "which encoder runs of a sampler can be left out?"
    paper = "wang2025ddt"
    fidelity = (
        "perceptrons and digits; the paper's encoder and decoder are transformers on ImageNet"
    )
    data = "scikit-learn digits; 256 images are sampled"
    claims = (
        Claim("planned",
              "Steps planned from the similarity of states on other images beat equal distances.",
              "share of the images' variance that is lost, equal distances less planned",
              arms=("planned", "equal distances")),
        Claim("equal", "Equal distances beat steps by lot.",
              "share of the images' variance that is lost, mean of 20 lots less equal distances",
              arms=("equal distances", "by lot")),
        Claim("half", "Half of the runs can go at 5 % of the variance.",
              "0.05 less the share that is lost with 8 planned steps"),
    )  # fmt: skip
    null = Claim("own noise", "Steps planned on the images that judge keep no more.",
                 "share of the images' variance that is lost, planned on others less on these"
                 )  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the flow, plan, and sample with each plan."""
        tick("flow")
        x = digit_images(seed)[0].flatten(1)
        flow = drawn(_Flow, seed)
        _learn(flow, x, seed, TINY if tiny else LEARN)
        draw = torch.Generator().manual_seed(seed + 1)
        first, noise = torch.randn(2, IMAGES, PIXELS, generator=draw)
        with torch.no_grad():
            similarity = _similarity(flow.run(first, range(STEPS))[1])
            whole, own = flow.run(noise, range(STEPS))

            def lost(steps: Sequence[int]) -> float:
                moved = flow.run(noise, steps)[0]
                return float((moved - whole).square().mean() / whole.var(0).mean())

            tick("plans")
            planned, _ = share_steps(similarity, KEPT)
            at = {
                "planned": lost(planned),
                "planned on own": lost(share_steps(_similarity(own), KEPT)[0]),
                "equal": lost(range(0, STEPS, STEPS // KEPT)),
                "half": lost(share_steps(similarity, STEPS // 2)[0]),
            }
            for name, rows in (("planned", IMAGES), ("equal distances", 0), ("by lot", 0)):
                note_for(name, rows=rows, passes=KEPT)
            tick("lots")
            n = 2 if tiny else DRAWS
            by_lot = fmean(lost(_by_lot(draw)) for _ in range(n))
        return {
            "planned": at["equal"] - at["planned"],
            "equal": by_lot - at["equal"],
            "half": 0.05 - at["half"],
            "own noise": at["planned"] - at["planned on own"],
            **{f"lost | {name}": value for name, value in at.items()},
            "lost | by lot": by_lot,
            **{f"planned step | {i}": float(step) for i, step in enumerate(planned)},
        }


class _Flow(nn.Module):
    """A flow from noise to images: an encoder of the noisy image, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS + 1, 2 * WIDTH),
            nn.SiLU(),
            nn.Linear(2 * WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
        )
        self.decoder = nn.Sequential(
            nn.Linear(WIDTH + PIXELS + 1, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, PIXELS)
        )

    def encoded(self, x: Tensor, time: Tensor) -> Tensor:
        return self.encoder(torch.cat([x, time], 1))

    def velocity(self, state: Tensor, x: Tensor, time: Tensor) -> Tensor:
        return self.decoder(torch.cat([state, x, time], 1))

    def run(self, x: Tensor, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images from noise, and the computed states (step, image, dim)."""
        states = list[Tensor]()
        for step in range(STEPS):
            time = torch.full((len(x), 1), step / STEPS)
            if step in steps:
                states.append(self.encoded(x, time))
            x = x + self.velocity(states[-1], x, time) / STEPS
        return x, torch.stack(states)


def _by_lot(draw: torch.Generator) -> list[int]:
    """Return the first step and random others."""
    return [0, *(1 + torch.randperm(STEPS - 1, generator=draw)[: KEPT - 1]).tolist()]


def _learn(flow: _Flow, x: Tensor, seed: int, steps: int) -> None:
    def loss(rows: Tensor) -> Tensor:
        image, time = x[rows], torch.rand(len(rows), 1)
        noise = torch.randn_like(image)
        mixed = (1 - time) * noise + time * image
        made = flow.velocity(flow.encoded(mixed, time), mixed, time)
        return (made - (image - noise)).square().mean()

    minimise(loss, flow.parameters(), len(x), steps=steps, seed=seed, rate=1e-3, batch=128)


def _similarity(states: Tensor) -> Tensor:
    """Return the mean cosine between the states of two steps, over images."""
    unit = nn.functional.normalize(states, dim=2)
    return torch.einsum("and,bnd->ab", unit, unit) / states.shape[1]
