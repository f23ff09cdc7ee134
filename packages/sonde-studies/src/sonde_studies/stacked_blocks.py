"""Weights as stacks of signs and low-rank matrices, against rounding and SVD."""

import math
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch

from sonde import Model
from sonde.compress import RTN, BitStack, LowRankWeights, fidelity, open_stack, save_stack
from sonde_studies._shrunk import Shrunk, log_ratio, wide_net
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

BITS, GROUP, LAYERS, LOUD, TIMES = (2.25, 3.25, 4.25), 128, ("2", "4"), 3, 100.0
NUMBERS = 2 * 256**2
"""Weights of the layers that are compressed."""


@final
class StackedBlocksStudy(Study):
    """Dense nets on digits, with two layers of 256 units at 2.25 to 4.25 bits.

    *Loud* nets have three hidden units a hundred times as large, and columns behind them as much
    smaller: the answers are the same.
    """

    name = "stacked-blocks"
    title = "do stacks of blocks keep more than rounding below three bits?"
    paper = "wang2025bitstack"
    fidelity = "blocks are sorted by errors of layers; bytes are equal, scales and matrices counted"
    data = "digits: nets of three hidden layers, 1,000 rows to learn from, 797 to judge"
    claims = (
        Claim("grows", "Each further bit makes it diverge less.",
              "logarithm of the ratio of divergences, the least of two steps, each to more bytes",
              arms=("stack, 4.25 bits", "stack, 2.25 bits")),
        Claim("rounding",
              "At 2.25 bits it diverges less than rounding to the nearest, which reads no rows.",
              "logarithm of the divergence of RTN over its own",
              arms=("stack, 2.25 bits", "rounding, 2.25 bits")),
        Claim("loud", "Where three inputs are a hundred times as large, it does.",
              "logarithm of the divergence of RTN, which reads no rows, over its own, 2.25 bits",
              arms=("stack, 2.25 bits", "rounding, 2.25 bits")),
        Claim("vectors", "At 2.25 bits singular vectors alone diverge ten times as much.",
              "logarithm of the divergence of plain thin matrices, which read no rows, over its "
              "own, less log 10",
              arms=("stack, 2.25 bits", "thin matrices")),
        Claim("four", "At 4.25 bits rounding diverges less.",
              "logarithm of its own divergence over that of RTN, which reads no rows",
              arms=("stack, 4.25 bits", "rounding, 4.25 bits")),
        Claim("cut", "A file of 4.25 bits, cut to that of 2.25 and 1 %, is as good to a tenth.",
              "logarithm of 1.1 less that of the cut file's divergence over the other's",
              arms=("cut file", "stack, 2.25 bits")),
    )  # fmt: skip
    null = Claim("whole file", "A file that is opened whole answers as the stack in memory does.",
                 "divergence in nats, 2.25 bits")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Compress by stacks and by rounding at three sizes."""
        tick("a net")
        found = wide_net(seed, tiny)
        kl: dict[str, float] = {}
        for bits in BITS:
            tick(f"{bits} bits")
            stack = BitStack(bits, layers=LAYERS)
            rounds = RTN(int(bits), GROUP, layers=LAYERS)
            for name, rule in (("stack", stack), ("rounding", rounds)):
                with part(f"{name}, {bits} bits"):
                    note(bytes=bits * NUMBERS / 8)
                    kl[f"{name} | {bits} bits"] = found.divergence(rule)
        thin = LowRankWeights(1 - BITS[0] / 16, whiten="none", layers=LAYERS)
        with part("thin matrices"):
            note(bytes=BITS[0] * NUMBERS / 8)
            kl["thin matrices | 2.25 bits"] = found.divergence(thin)
        net = _loud(found.model.module, seed)
        pair = RTN(2, GROUP, layers=LAYERS), BitStack(BITS[0], layers=LAYERS)
        loud = [found.divergence(rule, net=net) for rule in pair]
        with part("cut file"):
            note(bytes=1.01 * BITS[0] * NUMBERS / 8)
            kl["cut file | 2.25 bits"] = _cut(found)
        own = [kl[f"stack | {bits} bits"] for bits in BITS]
        return {
            "grows": min(log_ratio(own[0], own[1]), log_ratio(own[1], own[2])),
            "rounding": log_ratio(kl["rounding | 2.25 bits"], own[0]),
            "loud": log_ratio(*loud),
            "vectors": log_ratio(kl["thin matrices | 2.25 bits"], 10 * own[0]),
            "four": log_ratio(own[2], kl["rounding | 4.25 bits"]),
            "cut": math.log(1.1) - log_ratio(kl["cut file | 2.25 bits"], own[0]),
            "whole file": reopened(found, BITS[0]),
            **{f"divergence, {name}": value for name, value in kl.items()},
        }


def _cut(found: Shrunk) -> float:
    """Return the divergence of the largest stack's file, cut to the size of the smallest one's."""
    net = found.model.module
    with TemporaryDirectory() as folder:
        files = [Path(folder, str(i)) for i in range(2)]
        for file, bits in zip(files, (BITS[0], BITS[-1]), strict=True):
            rule = BitStack(bits, layers=LAYERS)
            save_stack(found.planned(rule).fold(net), file)
        # the longer file's index has more entries, which a large model would not notice
        size = int(1.01 * files[0].stat().st_size)
        cut = open_stack(deepcopy(net), files[1], size).module
    return fidelity(found.model, cut, found.fresh).kl


def reopened(found: Shrunk, bits: float, n_bytes: int | None = None) -> float:
    """Return the divergence of a stack's file, opened again, from the stack in memory.

    Parameters
    ----------
    found : Shrunk
    bits : float
    n_bytes : int, optional
        So much of the file is read; all of it by default.
    """
    net = found.model.module
    new = found.planned(BitStack(bits, layers=LAYERS)).fold(net)
    with TemporaryDirectory() as folder:
        file = Path(folder, "whole")
        save_stack(new, file)
        opened = open_stack(deepcopy(net), file, n_bytes).module
    return fidelity(Model(new), opened, found.fresh).kl


def _loud(net: Any, seed: int) -> Any:
    """Return an equivalent net with three large units before each rounded layer."""
    new: Any = deepcopy(net)
    draw = torch.Generator().manual_seed(seed)
    for i in map(int, LAYERS):
        units = torch.randperm(256, generator=draw)[:LOUD]
        with torch.no_grad():
            new[i - 2].weight[units] *= TIMES
            new[i - 2].bias[units] *= TIMES
            new[i].weight[:, units] /= TIMES
    return new
