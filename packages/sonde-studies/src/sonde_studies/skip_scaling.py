"""Scaled long skips of a denoiser: stability of training, and final loss.

A U-Net of linear maps over digits; the coefficients of the skips are constant, learned, or 1.
"""

from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from sonde.layers import ScaledSkip
from sonde_studies._flow_matching import mixtures
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

FIT, STEPS, TINY, BATCH, RATE = 1_000, 400, 8, 64, 4e-3
WIDTHS = (96, 80, 64, 48, 32)
BASE = 0.7
"""Plain trainings in orders of their own, the first half of them against the second."""


@final
class SkipScalingStudy(Study):
    """A denoiser with coefficients .7^(i - 1), learned coefficients, or plain skips."""

    name = "skip-scaling"
    title = "do scaled skips calm the training of a denoiser?"
    paper = "huang2023scalelong"
    fidelity = "linear maps in place of convolutions, five levels, one noise schedule"
    data = "digits: 1,000 to train on, 797 to judge"
    claims = (
        Claim("states", "With constant coefficients the states' range moves less in training.",
              "thousandths: mean absolute change of its logarithm in a step, plain less scaled",
              arms=("scaled", "plain")),
        Claim("learned", "So it does with learned ones.",
              "thousandths: mean absolute change of its logarithm in a step, plain less learned, "
              "which has 1.5 times the parameters",
              arms=("learned", "plain")),
        Claim("gradients", "With constant coefficients the gradients' range over the blocks moves "
              "less in training.",
              "thousandths: mean absolute change of its logarithm in a step, plain less scaled",
              arms=("scaled", "plain")),
        Claim("loss", "The loss is no higher, to a twentieth.",
              "plain less scaled, over plain, and 0.05",
              arms=("scaled", "plain")),
    )  # fmt: skip
    null = Claim("ones", "Coefficients of 1 change nothing.",
                 "thousandths: mean absolute change of its logarithm in a step, plain less scaled "
                 "by 1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm with the same noise."""
        x, _ = shuffled_digits(seed)
        moves, slopes, losses = (dict[str, float]() for _ in range(3))
        steps = TINY if tiny else STEPS
        for arm in ("plain", "scaled", "learned"):
            tick(arm)
            net = drawn(lambda arm=arm: _UNet(arm), seed)
            moves[arm], slopes[arm] = _train(net, x[:FIT], seed, steps)
            losses[arm] = _loss(net, x[FIT:], seed)
        tick("ones")
        return {
            "states": 1_000.0 * (moves["plain"] - moves["scaled"]),
            "learned": 1_000.0 * (moves["plain"] - moves["learned"]),
            "gradients": 1_000.0 * (slopes["plain"] - slopes["scaled"]),
            "loss": (losses["plain"] - losses["scaled"]) / losses["plain"] + 0.05,
            "ones": 1_000.0 * (moves["plain"] - moves_at(x, seed, steps)),
            **{f"move | {arm}": v for arm, v in moves.items()},
            **{f"gradients' move | {arm}": v for arm, v in slopes.items()},
            **{f"loss | {arm}": v for arm, v in losses.items()},
        }


def moves_at(x: Tensor, seed: int, steps: int, base: float = 1.0) -> float:
    """Return how much the range of states moves with coefficients that are powers of a base."""
    return _train(drawn(lambda: _UNet("scaled", base), seed), x[:FIT], seed, steps)[0]


class _UNet(nn.Module):
    """Linear maps down and up with a skip at each width; the deepest skip comes last."""

    def __init__(self, arm: str, base: float = BASE) -> None:
        super().__init__()
        sizes = [65, *WIDTHS]
        pairs = list(pairwise(sizes))
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.Linear(b, a) for a, b in reversed(pairs[1:]))
        self.last = nn.Linear(WIDTHS[0], 64)
        self.skips = nn.ModuleList(_skip(arm, i + 1, n, base) for i, n in enumerate(WIDTHS[:-1]))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h, kept = torch.cat([x, t], 1), list[Tensor]()
        for layer in self.down:
            h = torch.relu(layer(h))
            kept.append(h)
        for layer, skip, scale in zip(
            self.up, reversed(kept[:-1]), reversed(list(self.skips)), strict=True
        ):
            h = torch.relu(layer(h)) + scale(skip)
        return self.last(h), h


def _skip(arm: str, index: int, dim: int, base: float) -> nn.Module:
    if arm == "learned":
        return ScaledSkip(how="learned", dim=dim)
    return ScaledSkip(index, base) if arm == "scaled" else nn.Identity()


def _train(net: nn.Module, x: Tensor, seed: int, steps: int) -> tuple[float, float]:
    """Train, and return the change per step of the logarithm of the ranges of states and gradients.

    Both are read on the same rows after each step; that of gradients is the largest over blocks.
    """
    adam = torch.optim.Adam(net.parameters(), lr=RATE)
    draw, ranges, slopes = torch.Generator().manual_seed(seed), list[Tensor](), list[Tensor]()
    given, at, wanted = mixtures(x[:128], torch.Generator().manual_seed(seed + 1))
    blocks = [part.weight for part in net.modules() if isinstance(part, nn.Linear)]
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=draw)
        mixed, t, noise = mixtures(x[rows], draw)
        adam.zero_grad()
        (net(mixed, t)[0] - noise).square().mean().backward()
        adam.step()
        told, states = net(given, at)
        ranges.append(states.detach().abs().amax().log())
        slope = torch.autograd.grad((told - wanted).square().mean(), blocks)
        slopes.append(torch.stack([g.abs().amax() for g in slope]).amax().log())
    moved, turned = (float(torch.stack(x).diff().abs().mean()) for x in (ranges, slopes))
    return moved, turned


@torch.no_grad()
def _loss(net: nn.Module, x: Tensor, seed: int) -> float:
    mixed, t, noise = mixtures(x.repeat(4, 1), torch.Generator().manual_seed(seed + 2))
    return float((net(mixed, t)[0] - noise).square().mean())
