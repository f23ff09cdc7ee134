"""Delayed copies without a recurrent net: queues of past states against a cell of equal size.

Simulated sequences of signs; the delay is known to none of the nets.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as sign_loss

from sonde.layers import StateQueue
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

DELAY, LENGTH, ROWS, STEPS, TINY, DIM = 6, 24, 512, 400, 15, 12
ARMS = ("none", "filter", "attention", "cell")


@final
class MemoryWithoutRecurrenceStudy(Study):
    """The sign of six steps before, by taps, by attention, by a cell, and without a memory."""

    name = "memory-without-recurrence"
    title = "does a queue of states remember what a recurrent cell does?"
    paper = "zhang2018fsmn"
    fidelity = "one layer; a gated recurrent unit as the cell"
    data = "simulated: sequences of 24 random signs with noise, copied after 6 steps"
    claims = (
        Claim("filter", "Taps on the last states learn the copy.",
              "accuracy of the filter less that without a memory"),
        Claim("sooner", "They learn it sooner than a recurrent cell does.",
              "accuracy after as many steps, filter less cell"),
        Claim("attention", "Attention over the queue learns it too.",
              "accuracy of attention less that without a memory"),
    )  # fmt: skip
    null = Claim("short", "A queue that is too short by one step says nothing.",
                 "accuracy of a filter of five taps", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each memory on the same sequences."""
        found: dict[str, float] = {}
        for arm in (*ARMS, "short"):
            tick(arm)
            found[arm] = _accuracy(arm, seed, TINY if tiny else STEPS)
        return {
            "filter": found["filter"] - found["none"],
            "sooner": found["filter"] - found["cell"],
            "attention": found["attention"] - found["none"],
            "short": found["short"],
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


class _Net(nn.Module):
    """Map each step, remember, and map again."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, DIM), nn.Linear(DIM, 1)
        taps = {"filter": DELAY, "attention": DELAY, "short": DELAY - 1}
        kind = "attention" if arm == "attention" else "filter"
        self.cell = nn.GRU(DIM, DIM, batch_first=True) if arm == "cell" else None
        self.queue = StateQueue(DIM, taps[arm], kind) if arm in taps else nn.Identity()
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, DIM)) if arm == "attention" else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h if self.places is None else h + self.places
        h = self.queue(h) if self.cell is None else self.cell(h)[0]
        return self.last(h)[..., 0]


def _rows(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (ROWS, LENGTH), generator=draw).float()
    noisy = 2 * sign - 1 + 0.3 * torch.randn(sign.shape, generator=draw)
    return noisy.unsqueeze(2), sign


def _accuracy(arm: str, seed: int, steps: int) -> float:
    (x, sign), (held, truth) = _rows(2 * seed), _rows(2 * seed + 1)
    net = drawn(lambda: _Net(arm), seed)

    def loss(rows: Tensor) -> Tensor:
        return sign_loss(net(x[rows])[:, DELAY:], sign[rows][:, :-DELAY])

    minimise(loss, net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2)
    with torch.no_grad():
        right = (net(held)[:, DELAY:] > 0).float() == truth[:, :-DELAY]
    return float(right.double().mean())
