"""Delayed copies without recurrence: queues of past states against a recurrent cell.

Simulated sequences of signs; the delay is known to none of the nets.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as sign_loss
from torch.nn.functional import mse_loss

from sonde.layers import StateQueue
from sonde_studies._remembered_sequences import LENGTH, ROWS, noisy_signs, paths, tones
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

DELAY, STEPS, TINY, DIM = 6, 400, 15, 12
ARMS = ("none", "filter", "attention", "cell", "soft", "gated")


@final
class MemoryWithoutRecurrenceStudy(Study):
    """The sign six steps earlier, by taps, by attention, by a cell, and without memory."""

    name = "memory-without-recurrence"
    title = "does a queue of states remember what a recurrent cell does?"
    paper = "zhang2018fsmn"
    fidelity = "one layer; a gated recurrent unit as the cell"
    data = "simulated: 24 random signs copied after 6 steps; two tones; two paths on a line"
    claims = (
        Claim("filter", "Taps on the last states learn the copy.",
              "accuracy of the filter less that without a memory"),
        Claim("sooner", "They learn it sooner than a recurrent cell does.",
              "accuracy after as many steps, filter less cell"),
        Claim("attention", "Attention over the queue learns it too.",
              "accuracy of attention less that without a memory"),
        Claim("soft", "So does attention over a queue that is pushed by learned shares.",
              "accuracy of the softly pushed queue less that without a memory"),
        Claim("gated", "Gated taps at every second step learn it with half as many taps.",
              "accuracy of three gated taps less that without a memory"),
        Claim("tones", "Two gated layers of growing stride take a slow tone out of a mixture.",
              "R^2 of the slow tone, gated layers less no memory"),
        Claim("paths", "A softly pushed queue foretells two paths that cross.",
              "R^2 of the next move of both points, soft queue less no memory"),
    )  # fmt: skip
    null = Claim("short", "A queue that is too short by one step says nothing.",
                 "accuracy of a filter of five taps", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each memory on the same sequences."""
        found, steps = dict[str, float](), TINY if tiny else STEPS
        for arm in (*ARMS, "short"):
            tick(arm)
            found[arm] = _accuracy(arm, seed, steps)
        tick("tones and paths")
        return {
            "filter": found["filter"] - found["none"],
            "sooner": found["filter"] - found["cell"],
            "attention": found["attention"] - found["none"],
            "soft": found["soft"] - found["none"],
            "gated": found["gated"] - found["none"],
            "tones": _gain(tones, "layers", seed, steps),
            "paths": _gain(paths, "soft", seed, steps),
            "short": found["short"],
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


class _Net(nn.Module):
    """A map of each step, a memory, and a second map."""

    def __init__(self, arm: str, width: int = 1, length: int = LENGTH) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, DIM), nn.Linear(DIM, width)
        self.cell = nn.GRU(DIM, DIM, batch_first=True) if arm == "cell" else None
        self.queue = _queue(arm)
        placed = arm in ("attention", "soft")
        self.places = nn.Parameter(0.1 * torch.randn(length, DIM)) if placed else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h if self.places is None else h + self.places[: x.shape[1]]
        h = self.queue(h) if self.cell is None else self.cell(h)[0]
        return self.last(h)


def _queue(arm: str) -> nn.Module:
    if arm == "gated":
        return StateQueue(DIM, DELAY // 2, stride=2, gated=True)
    if arm == "soft":
        return StateQueue(DIM, DELAY, "attention", push="soft")
    if arm == "layers":
        return nn.Sequential(*(StateQueue(DIM, 2, stride=2**i, gated=True) for i in range(3)))
    taps = {"filter": DELAY, "attention": DELAY, "short": DELAY - 1}
    kind = "attention" if arm == "attention" else "filter"
    return StateQueue(DIM, taps[arm], kind) if arm in taps else nn.Identity()


def _accuracy(arm: str, seed: int, steps: int) -> float:
    (x, sign), (held, truth) = noisy_signs(2 * seed), noisy_signs(2 * seed + 1)
    net = drawn(lambda: _Net(arm), seed)

    def loss(rows: Tensor) -> Tensor:
        return sign_loss(net(x[rows])[:, DELAY:, 0], sign[rows][:, :-DELAY])

    minimise(loss, net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2)
    with torch.no_grad():
        right = (net(held)[:, DELAY:, 0] > 0).float() == truth[:, :-DELAY]
    return float(right.double().mean())


def _gain(task: Callable[[int], tuple[Tensor, Tensor]], arm: str, seed: int, steps: int) -> float:
    """Return the additional variance of a task's targets that a memory explains."""
    (x, y), (held, truth) = task(2 * seed), task(2 * seed + 1)
    found: list[float] = []
    for kind in (arm, "none"):
        net = drawn(lambda kind=kind: _Net(kind, x.shape[2]), seed)

        def loss(rows: Tensor, net: nn.Module = net) -> Tensor:
            return mse_loss(net(x[rows])[:, DELAY:], y[rows][:, DELAY:])

        minimise(loss, net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2)
        with torch.no_grad():
            left = mse_loss(net(held)[:, DELAY:], truth[:, DELAY:])
        found.append(float(1 - left / truth[:, DELAY:].var(correction=0)))
    return found[0] - found[1]
