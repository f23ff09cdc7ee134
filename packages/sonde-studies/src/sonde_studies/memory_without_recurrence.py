"""Delayed copies without recurrence: queues of past states against a recurrent cell.

Simulated sequences of signs; the delay is known to none of the nets.
"""

from types import FunctionType
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as sign_loss
from torch.nn.functional import mse_loss

from sonde_studies._memory_nets import DELAY, MemoryNet
from sonde_studies._remembered_sequences import ROWS, noisy_signs, paths, tones
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

STEPS, TINY, MARGIN = 400, 15, 0.02
ARMS = ("none", "filter", "attention", "cell", "soft", "gated", "ungated")
TONES = ("none", "cell", "layers", "ungated layers", "undilated layers", "dense layers")
PATHS = ("none", "cell", "soft", "attention")


@final
class MemoryWithoutRecurrenceStudy(Study):
    """The sign six steps earlier, by taps, by attention, by a cell, and without memory."""

    name = "memory-without-recurrence"
    title = "does a queue of states remember what a recurrent cell does?"
    paper = "zhang2018fsmn"
    fidelity = "one layer; a gated recurrent unit as the cell"
    data = "simulated: 24 random signs copied after 6 steps; two tones; two paths on a line"
    claims = (
        Claim("cell", "Premise: a recurrent cell learns the copy.",
              "accuracy of the cell less that without a memory, of a 26th of the parameters",
              above=0.4,
              arms=("cell", "none")),
        Claim("filter", "Taps on the last states learn it as well as the cell, to two points.",
              "accuracy of the filter (a ninth of the parameters) less that of the cell, and 0.02",
              premise="cell",
              arms=("filter", "cell")),
        Claim("attention", "So does attention over the queue.",
              "accuracy of attention (four fifths of the parameters) less that of the cell, and "
              "0.02",
              premise="cell",
              arms=("attention", "cell")),
        Claim("soft", "So does attention over a queue that is pushed by learned shares.",
              "accuracy of the softly pushed queue (four fifths of the parameters) less that of "
              "the cell, and 0.02",
              premise="cell",
              arms=("soft", "cell")),
        Claim("soft push", "Pushed softly, the queue learns the copy better than shifted.",
              "accuracy of attention, softly pushed less shifted queue",
              arms=("soft", "attention")),
        Claim("gated", "Gated taps at every second step do, with half as many taps.",
              "accuracy of three gated taps (a ninth of the parameters) less that of the cell, "
              "and 0.02",
              premise="cell",
              arms=("gated", "cell")),
        Claim("gate", "With a gate the three taps learn it better.",
              "accuracy of three taps, gated (1.5 times the parameters) less ungated",
              arms=("gated", "ungated")),
        Claim("tones", "Three gated layers of growing stride take a slow tone out of a mixture as "
              "well as the cell.",
              "R^2 of the slow tone, gated layers (a fifth of the parameters) less the cell, and "
              "0.02",
              arms=("tones, layers", "tones, cell")),
        Claim("gated tones", "They do so better than layers without gates.",
              "R^2 of the slow tone, gated layers (1.7 times the parameters) less ungated",
              arms=("tones, layers", "tones, ungated layers")),
        Claim("dilated tones", "They do so better than layers of stride one, which reach less far.",
              "R^2 of the slow tone, growing stride less stride one",
              arms=("tones, layers", "tones, undilated layers")),
        Claim("dense tones", "Each layer fed with all earlier ones, they do so better.",
              "R^2 of the slow tone, dense connections (six times the parameters) less a plain "
              "stack",
              arms=("tones, dense layers", "tones, layers")),
        Claim("paths", "A softly pushed queue foretells two paths that cross as well as the cell.",
              "R^2 of the next move of both points, soft queue (four fifths of the parameters) "
              "less the cell, and 0.02",
              arms=("paths, soft", "paths, cell")),
        Claim("path push", "It foretells them better than a shifted queue.",
              "R^2 of the next move of both points, softly pushed less shifted queue",
              arms=("paths, soft", "paths, attention")),
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
        tone = {arm: _explained(tones, arm, seed, steps) for arm in TONES}
        path = {arm: _explained(paths, arm, seed, steps) for arm in PATHS}
        return {
            "cell": found["cell"] - found["none"],
            **{arm: found[arm] - found["cell"] + MARGIN for arm in ("filter", "attention", "soft")},
            "soft push": found["soft"] - found["attention"],
            "gated": found["gated"] - found["cell"] + MARGIN,
            "gate": found["gated"] - found["ungated"],
            "tones": tone["layers"] - tone["cell"] + MARGIN,
            "gated tones": tone["layers"] - tone["ungated layers"],
            "dilated tones": tone["layers"] - tone["undilated layers"],
            "dense tones": tone["dense layers"] - tone["layers"],
            "paths": path["soft"] - path["cell"] + MARGIN,
            "path push": path["soft"] - path["attention"],
            "short": found["short"],
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"tones | {arm}": v for arm, v in tone.items()},
            **{f"paths | {arm}": v for arm, v in path.items()},
        }


def _accuracy(arm: str, seed: int, steps: int) -> float:
    (x, sign), (held, truth) = noisy_signs(2 * seed), noisy_signs(2 * seed + 1)
    net = drawn(lambda: MemoryNet(arm), seed)

    def loss(rows: Tensor) -> Tensor:
        return sign_loss(net(x[rows])[:, DELAY:, 0], sign[rows][:, :-DELAY])

    minimise(loss, net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2)
    with torch.no_grad():
        right = (net(held)[:, DELAY:, 0] > 0).float() == truth[:, :-DELAY]
    return float(right.double().mean())


def _explained(task: FunctionType, arm: str, seed: int, steps: int) -> float:
    """Return the share of the variance of a task's targets that a net with a memory explains."""
    (x, y), (held, truth) = task(2 * seed), task(2 * seed + 1)
    net = drawn(lambda: MemoryNet(arm, x.shape[2]), seed)

    def loss(rows: Tensor) -> Tensor:
        return mse_loss(net(x[rows])[:, DELAY:], y[rows][:, DELAY:])

    with part(f"{task.__name__}, {arm}"):
        minimise(loss, net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2)
    with torch.no_grad():
        left = mse_loss(net(held)[:, DELAY:], truth[:, DELAY:])
    return float(1 - left / truth[:, DELAY:].var(correction=0))
