"""Test whether a sampler needs its encoder at every step, and how to choose the steps.

A small rectified flow of digits: an encoder reads the noisy image, a decoder moves it. Between the
chosen steps the decoder works with the encoder's last states. A residual net of one piece, of as
many parameters, shows what the two parts are worth.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import final

import torch
from torch import Tensor, nn

from sonde.compress import SplitFlow, share_steps
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, minimise

STEPS, KEPT, DRAWS, IMAGES = 16, 4, 20, 256
LEARN, TINY, PIXELS, WIDTH, FIT, INNER = 2000, 5, 64, 128, 1_500, 192


@final
class StepSharingStudy(Study):
    """Schedules of four encoder runs out of sixteen, against all, from the same noise."""

    name = "step-sharing"
    title = "which encoder runs of a sampler can be left out?"
    paper = "wang2025ddt"
    fidelity = (
        "perceptrons and digits; the paper's encoder and decoder are transformers on ImageNet"
    )
    data = "scikit-learn digits: 1,500 to learn from, 297 to judge; 256 images are sampled"
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
        Claim("split", "Encoder and decoder tell the velocity of fresh digits better than a "
              "residual net of one piece.", "mean squared error, one piece less two parts",
              arms=("two parts", "one piece")),
        Claim("early", "So they do after a fifth of the updates.",
              "mean squared error, one piece less two parts, 400 updates each",
              arms=("two parts, early", "one piece, early")),
    )  # fmt: skip
    null = Claim("own noise", "Steps planned on the images that judge keep no more.",
                 "share of the images' variance that is lost, planned on others less on these"
                 )  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the flow, plan, and sample with each plan."""
        x = digit_images(seed)[0].flatten(1)
        learn, error, nets = TINY if tiny else LEARN, dict[str, float](), dict[str, nn.Module]()
        for name, make in (("two parts", two_parts), ("one piece", _OnePiece)):
            for rest, steps in ((", early", learn // 5), ("", learn)):
                tick(name + rest)
                net = nets[name + rest] = drawn(make, seed)
                _learn(net, x[:FIT], seed, steps)
                error[name + rest] = _error(net, x[FIT:], seed)
        flow = nets["two parts"]
        assert isinstance(flow, SplitFlow)
        tick("similarity")
        draw = torch.Generator().manual_seed(seed + 1)
        first, noise = torch.randn(2, IMAGES, PIXELS, generator=draw)
        with torch.no_grad():
            similarity = flow.similarity(first, STEPS)
            own, whole = flow.similarity(noise, STEPS), flow.sample(noise, STEPS)

            def lost(steps: Sequence[int]) -> float:
                moved = flow.sample(noise, STEPS, steps)
                return float((moved - whole).square().mean() / whole.var(0).mean())

            tick("plans")
            planned, _ = share_steps(similarity, KEPT)
            at = {
                "planned": lost(planned),
                "planned on own": lost(share_steps(own, KEPT)[0]),
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
            "split": error["one piece"] - error["two parts"],
            "early": error["one piece, early"] - error["two parts, early"],
            "own noise": at["planned"] - at["planned on own"],
            **{f"lost | {name}": value for name, value in at.items()},
            "lost | by lot": by_lot,
            **{f"error | {name}": value for name, value in error.items()},
            **{f"planned step | {i}": float(step) for i, step in enumerate(planned)},
        }


class _Joined(nn.Module):
    """A perceptron of tensors that are joined."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.layers(torch.cat(parts, 1))


def two_parts() -> SplitFlow:
    """Return an encoder of noisy images, and a decoder that reads them again."""
    encoder = _Joined(
        nn.Linear(PIXELS + 1, 2 * WIDTH),
        nn.SiLU(),
        nn.Linear(2 * WIDTH, WIDTH),
        nn.LayerNorm(WIDTH),
    )
    decoder = _Joined(
        nn.Linear(WIDTH + PIXELS + 1, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, PIXELS)
    )
    return SplitFlow(encoder, decoder)


class _OnePiece(nn.Module):
    """Two residual blocks, with as many parameters as both parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(PIXELS + 1, WIDTH), nn.Linear(WIDTH, PIXELS)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.SiLU(), nn.Linear(INNER, WIDTH)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(torch.cat([x, time], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def _by_lot(draw: torch.Generator) -> list[int]:
    """Return the first step and random others."""
    return [0, *(1 + torch.randperm(STEPS - 1, generator=draw)[: KEPT - 1]).tolist()]


def _learn(flow: nn.Module, x: Tensor, seed: int, steps: int) -> None:
    def loss(rows: Tensor) -> Tensor:
        return _loss(flow, x[rows])

    minimise(loss, flow.parameters(), len(x), steps=steps, seed=seed, rate=1e-3, batch=128)


def _loss(flow: nn.Module, image: Tensor) -> Tensor:
    time, noise = torch.rand(len(image), 1), torch.randn_like(image)
    made = flow((1 - time) * noise + time * image, time)
    return (made - (image - noise)).square().mean()


@torch.no_grad()
def _error(flow: nn.Module, x: Tensor, seed: int) -> float:
    """Return the error on images, each with noise of eight kinds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(_loss(flow, x.repeat(8, 1)))
