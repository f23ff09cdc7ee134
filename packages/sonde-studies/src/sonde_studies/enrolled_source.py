"""Separation of a source that was heard alone before: attention, a memory without recurrence, both.

Two tones of different bands are mixed. A fifth of the steps before hold one of them alone.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import StateQueue
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

ROWS, ALONE, LENGTH, STEPS, TINY = 1_024, 8, 40, 350, 4
DIM, HEADS, LAYERS, NARROW, DEPTH = 16, 2, 2, 8, 3
BANDS = ((0.25, 0.5), (0.7, 1.1), (1.4, 2.0))
"""Rates of tones in radians a step."""
FEED = {"attention": 57, "both": 32, "plain memory": 45, "memory": 66}
"""Hidden units of each feed-forward layer, which make the parameters of the arms equal."""
Mixtures = tuple[Tensor, Tensor, Tensor]


@final
class EnrolledSourceStudy(Study):
    """The tone that was heard alone, out of a mixture, with and without the recurrent module."""

    name = "enrolled-source"
    title = "does a memory without recurrence help attention to separate sources?"
    paper = "zhao2024mossformer2"
    fidelity = "reconstructed: two blocks, a plain attention; samples in place of encoded speech"
    data = "simulated: two noisy tones of three bands; one is alone for the first 8 of 40 steps"
    seconds = 30.0
    claims = (
        Claim("attention", "Attention with the recurrent module separates better than attention "
              "alone, at equal parameters.", "R^2 of the source, both less attention",
              arms=("both", "attention")),
        Claim("memory", "And better than the module alone, at equal parameters.",
              "R^2 of the source, both less memory", arms=("both", "memory")),
        Claim("flow", "Bottleneck, output layer and dense connections separate better than a "
              "plain stack of gated taps, at equal parameters.",
              "R^2 of the source, both less plain memory", arms=("both", "plain memory")),
    )  # fmt: skip
    null = Claim("other", "Where another mixture's tone is heard before, either tone is as near.",
                 "share of mixtures whose first tone is nearer", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same mixtures."""
        fit, held = mixtures(2 * seed), mixtures(2 * seed + 1)
        found = dict[str, float]()
        either = 0.5
        for arm in FEED:
            tick(arm)
            net = drawn(lambda arm=arm: SeparationNet(arm), seed)

            def loss(rows: Tensor, net: nn.Module = net) -> Tensor:
                return mse_loss(net(fit[0][rows])[:, ALONE:], fit[1][rows][:, ALONE:])

            steps = TINY if tiny else STEPS
            minimise(loss, net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2)
            found[arm] = _explained(net, held)
            either = _nearer(net, held) if arm == "both" else either
        return {
            **{key: found["both"] - found[key] for key in ("attention", "memory")},
            "flow": found["both"] - found["plain memory"],
            "other": either,
            **{f"R^2 | {arm}": value for arm, value in found.items()},
        }


def mixtures(seed: int) -> Mixtures:
    """Return (row, step, 1) of what is heard, of the source that begins, and of the other one."""
    draw = torch.Generator().manual_seed(seed)
    bands = torch.rand(ROWS, len(BANDS), generator=draw).argsort(1)[:, :2]
    low, high = torch.tensor(BANDS)[bands].unbind(2)
    rate = low + (high - low) * torch.rand(ROWS, 2, generator=draw)
    phase = 2 * torch.pi * torch.rand(ROWS, 2, generator=draw)
    tones = torch.sin(torch.arange(LENGTH)[:, None] * rate[:, None] + phase[:, None])
    noise = 0.2 * torch.randn(ROWS, LENGTH, generator=draw)
    later = torch.arange(LENGTH) >= ALONE
    heard = tones[..., 0] + later * tones[..., 1] + noise
    return heard[..., None], tones[..., :1], tones[..., 1:]


class SeparationNet(nn.Module):
    """Blocks of a memory, an attention, or both; each with a feed-forward layer.

    Parameters
    ----------
    arm : str
        A key of ``FEED``.
    """

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, DIM), nn.Linear(DIM, 1)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, DIM))
        self.blocks = nn.Sequential(*(_block(arm) for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the separated source (row, step, 1)."""
        return self.last(self.blocks(self.first(x) + self.places))


def _block(arm: str) -> nn.Module:
    taps = {"length": 2, "lookahead": 2, "gated": True}
    if arm == "plain memory":
        memory = [StateQueue(DIM, stride=2**i, **taps) for i in range(DEPTH)]
    else:
        memory = [StateQueue(DIM, bottleneck=NARROW, depth=DEPTH, **taps)]
    if arm == "memory":
        return nn.Sequential(*memory, _FeedForward(FEED[arm]))
    mixing = nn.TransformerEncoderLayer(
        DIM, HEADS, FEED[arm], 0.0, batch_first=True, norm_first=True
    )
    return mixing if arm == "attention" else nn.Sequential(*memory, mixing)


class _FeedForward(nn.Module):
    """The feed-forward layer of a block without an attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = nn.Linear(DIM, width), nn.ReLU(), nn.Linear(width, DIM)
        self.body = nn.Sequential(nn.LayerNorm(DIM), *hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@torch.no_grad()
def _explained(net: nn.Module, held: Mixtures) -> float:
    """Return the fraction of the source's variance that the net explains."""
    truth = held[1][:, ALONE:]
    return float(1 - mse_loss(net(held[0])[:, ALONE:], truth) / truth.var(correction=0))


@torch.no_grad()
def _nearer(net: nn.Module, held: Mixtures) -> float:
    """Return how often the first tone is nearer if the steps before are those of another row."""
    heard, *tones = held
    turned = torch.cat([heard.roll(1, 0)[:, :ALONE], heard[:, ALONE:]], 1)
    answer = net(turned)[:, ALONE:]
    first, other = ((answer - tone[:, ALONE:]).square().sum((1, 2)) for tone in tones)
    return float((first < other).double().mean())
