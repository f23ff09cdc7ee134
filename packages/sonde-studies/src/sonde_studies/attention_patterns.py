"""Patterns of attention over image patches, and the accuracy that each costs.

A transformer of two blocks over the pixels of digits in patches; larger pictures may differ.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.layers import Attention, LinearAttention
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels, squares_of

FIT, FEW, STEPS, TINY, SIDE, DIM, MORE = 1_000, 100, 300, 6, 4, 24, 5
KINDS = ("all", "axial", "stripes:1", "random:0.5", "histogram:4", "position", "linear", "none")
OTHERS = ("rows and linear", "all, few", "position, few")
ARMS = (*KINDS, *OTHERS, "stripes:1, local", "stripes:1, wide")
COST = "accuracy less that of full attention, and 0.02"


@final
class AttentionPatternsStudy(Study):
    """Digits in sixteen patches, with eight attention patterns and without attention.

    The map beside the stripes has 216 numbers in each block. The arm without it has five more
    hidden units in each block, 245 numbers.
    """

    name = "attention-patterns"
    title = "which patterns of attention cost accuracy?"
    paper = "ho2019axial"
    fidelity = "two blocks of one kind each; linear attention is causal here"
    data = "digits: 1,000 to train on, 797 to judge; patches of 2 x 2 pixels"
    seconds = 40.0
    claims = (
        Claim("axial", "Axial attention costs less than two points.", COST, premise="looks",
              arms=("axial", "all")),
        Claim("stripes", "Attention in stripes costs less than two points.", COST, premise="looks",
              arms=("stripes:1", "all")),
        Claim("random", "So does a random half of the keys.", COST, premise="looks",
              arms=("random:0.5", "all")),
        Claim("linear", "So does linear attention.", COST, premise="looks",
              arms=("linear", "all")),
        Claim("histogram", "So does attention among patches of like brightness.", COST,
              premise="looks",
              arms=("histogram:4", "all")),
        Claim("scales", "So does attention within rows, with linear attention between them.",
              "accuracy less that of full attention, and 0.02; with half as many parameters again",
              premise="looks",
              arms=("rows and linear", "all")),
        Claim("local", "A depthwise map of the values beside stripes is worth more than as many "
              "numbers in hidden units.",
              "accuracy, stripes with the map less with five more units in each block",
              arms=("stripes:1, local", "stripes:1, wide")),
        Claim("prior", "With a tenth of the rows to train on, a prior for near patches helps.",
              "accuracy less that of full attention, both from 100 rows",
              arms=("position, few", "all, few")),
        Claim("looks", "Premise: looking at other patches at all helps.",
              "accuracy of full attention less that without any, which has half of the parameters",
              arms=("all", "none")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy of full attention, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net with each pattern."""
        x, label = digit_images(seed)
        found: dict[str, float] = {}
        for arm in ARMS:
            tick(arm)
            kind, _, how = arm.partition(", ")
            n = FEW if how == "few" else FIT
            found[arm] = _right(kind, how, x, label, n, seed, TINY if tiny else STEPS)
        tick("labels by lot")
        full = found["all"]
        return {
            "axial": found["axial"] - full + 0.02,
            "stripes": found["stripes:1"] - full + 0.02,
            "local": found["stripes:1, local"] - found["stripes:1, wide"],
            "random": found["random:0.5"] - full + 0.02,
            "linear": found["linear"] - full + 0.02,
            "histogram": found["histogram:4"] - full + 0.02,
            "scales": found["rows and linear"] - full + 0.02,
            "prior": found["position, few"] - found["all, few"],
            "looks": full - found["none"],
            "lots": by_lot(x, seed, TINY if tiny else STEPS),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of full attention on labels by lot, less that of chance."""
    return _right("all", "", x, labels_by_lot(x, 10, seed), FIT, seed, steps) - 0.1


def _right(kind: str, how: str, x: Tensor, label: Tensor, n: int, seed: int, steps: int) -> float:
    net = drawn(lambda: PatchNet(kind, how), seed)
    learn_labels(net, x[:n], label[:n], steps=steps, seed=seed)
    return accuracy(net, x[FIT:], label[FIT:])


def _mixing(arm: str, local: bool) -> nn.Module:
    if arm == "none":
        return nn.Identity()
    if arm == "linear":
        return LinearAttention(DIM, 4)
    if arm == "rows and linear":
        return nn.Sequential(Attention(DIM, 4, f"block:{SIDE}"), LinearAttention(DIM, 4))
    grid, pattern = (SIDE, SIDE), "all" if arm == "position" else arm
    prior = "position" if arm == "position" else None
    return Attention(DIM, 4, pattern, grid, prior=prior, local_position=local)


class PatchNet(nn.Module):
    """Two blocks of a pattern of attention over the sixteen patches of a digit.

    Parameters
    ----------
    arm : str
        A pattern, or one of ``KINDS`` and ``OTHERS`` before the comma.
    how : str
        ``wide`` for more hidden units, ``local`` for a map of the values.
    """

    def __init__(self, arm: str, how: str) -> None:
        super().__init__()
        hidden = 2 * DIM + MORE * (how == "wide")
        self.first, self.places = nn.Linear(4, DIM), nn.Parameter(0.1 * torch.randn(SIDE**2, DIM))
        self.mixing = nn.ModuleList(_mixing(arm, how == "local") for _ in range(2))
        self.each = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(DIM), nn.Linear(DIM, hidden), nn.GELU(), nn.Linear(hidden, DIM)
            )
            for _ in range(2)
        )
        self.last = nn.Linear(DIM, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of digits."""
        h = self.first(squares_of(x, 2)) + self.places
        for mix, each in zip(self.mixing, self.each, strict=True):
            h = mix(h)
            h = h + each(h)
        return self.last(h.mean(1))
